"""Scores the labels of infer.py against the truth of data.test, and draws the page of the run.

    python evaluate.py --cfg configs/demo.toml
    python evaluate.py --cfg configs/demo.toml evaluate.border_nm=25
    python evaluate.py --cfg configs/demo.toml --tune    # the best [decode] settings: docs/tuning.md

Writes scores.json, scores.csv and scores.txt, the threshold curve of every volume, and outputs/<name>/report.html;
with a table [evaluate.sweep] also the files of dbMiM's evaluation.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from emcore import config
from emcore.errors import InputError, run_command
from emcore.settings import Settings
from emcore.settings.data import result_name


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", required=True, help="TOML file with the settings of the run")
    parser.add_argument("--params", help="TOML file laid over --cfg, such as the best_params.toml of a tune")
    parser.add_argument("--tune", action="store_true", help="search [tune.space] for the best [decode] settings")
    parser.add_argument("--from", dest="stored", action="append", default=[], metavar="FILE",
                        help="stored prediction to tune by; once for each volume with a label")
    parser.add_argument("--tune-budget", type=float, metavar="MINUTES", help="begin no stage of the tune after them")
    parser.add_argument("--tune-trial-seconds", type=float, metavar="S", help="give up a stage that takes longer")
    parser.add_argument("--tune-random", type=int, metavar="N", help="N random points instead of all combinations")
    parser.add_argument("overrides", nargs="*", help="settings to change, such as evaluate.convention=skimage")
    options, more = parser.parse_known_args(arguments)
    settings = config.load(Settings, options.cfg, [*options.overrides, *more], options.params)
    folder = Path(settings.outputs) / settings.name
    if not options.tune and (options.stored or options.tune_budget is not None or options.tune_random is not None
                             or options.tune_trial_seconds is not None):
        raise InputError("--from, --tune-budget, --tune-trial-seconds and --tune-random belong to --tune: add it")
    if options.tune:
        results = Path(options.stored[0]).parent if options.stored else newest_results(folder)
        return tune_decoding(settings, results, options)
    results = newest_results(folder)

    from emcore.report.page import write_report
    from emcore.report.scores import pooled, score_volume, write_scores

    found, scored = {}, []
    for number, volume in enumerate(settings.data.test):
        name = result_name(settings.data, number)
        if volume.label is None:
            print(f"{name}: no truth (data.test label), not scored")
            continue
        labels, prediction = (results / f"{name}_{kind}.h5" for kind in ("labels", "prediction"))
        truth, mask = (path and os.path.join(settings.data.folder, path) for path in (volume.label, volume.mask))
        scored.append((name, prediction, truth))
        found[name] = score_volume(settings.evaluate, truth, labels if labels.exists() else None, prediction,
                                   settings.data, mask)
    if not found:
        raise InputError("nothing could be scored: no volume of data.test has a label")
    if len(found) > 1:
        found[f"all {len(found)} volumes"] = pooled(settings.evaluate, found)
    print(write_scores(results, settings.evaluate, found))
    if settings.evaluate.sweep is not None:
        from emcore.predict.dbmim import write_sweep

        print(write_sweep(results, settings, scored))
    print(write_report(folder, results, settings, found))
    return 0


def tune_decoding(settings: Settings, results: Path, options: argparse.Namespace) -> int:
    from emcore.predict.tune import heat_table, tune
    from emcore.report.heat_map import write_heat_map

    rows = tune(settings, results, options.stored, options.tune_budget, options.tune_random,
                options.tune_trial_seconds)
    names, ends, values = heat_table(rows, settings.tune.objective)
    if names:
        write_heat_map(results / "tune.png", f"{settings.tune.objective}, best threshold", names, ends, values)
    return 0


def newest_results(folder: Path) -> Path:
    steps = [(int(path.name.partition("=")[2]), path) for path in folder.glob("results_step=*")
             if path.name.partition("=")[2].isdigit()]
    if not steps:
        raise InputError(f"{folder} has no results: run infer.py first")
    return max(steps)[1]


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
