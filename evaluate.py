"""Scores the labels of infer.py against the truth of data.test, and draws the page of the run.

    python evaluate.py --cfg configs/demo.toml
    python evaluate.py --cfg configs/demo.toml evaluate.border_nm=25
    python evaluate.py --cfg configs/demo.toml --tune    # the best [decode] settings: docs/tuning.md
    python evaluate.py --cfg configs/demo.toml --from a_prediction.h5   # what infer.py --from made of this file

Writes scores.json, scores.csv and scores.txt, the threshold curve of every volume, and outputs/<name>/report.html;
with a table [evaluate.sweep] also the files of dbMiM's evaluation. Volumes without a truth are shown on the page and
not scored. The page of --from a_prediction.h5 is a_report.html beside that file. The command says which weights and
settings made what it scores, and refuses results of another prediction, volume or truth than the recorded one.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from emcore import config, results
from emcore.errors import InputError, run_command
from emcore.settings import Settings
from emcore.settings.data import result_names
from emcore.volumes import is_there, open_volume
from emcore.volumes.address import located


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", required=True, help="TOML file with the settings of the run")
    parser.add_argument("--params", help="TOML file laid over --cfg, such as the best_params.toml of a tune")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="the results of infer.py that are meant; by "
                        "default those of the run's newest checkpoint")
    parser.add_argument("--again", action="store_true", help="score by the truth named now, though another is recorded")
    parser.add_argument("--tune", action="store_true", help="search [tune.space] for the best [decode] settings")
    parser.add_argument("--from", dest="stored", action="append", default=[], metavar="FILE",
                        help="a stored prediction that infer.py --from decoded; once for each volume of data.test "
                        "(with --tune: of those with a label). data.test=[] makes a page without scores")
    parser.add_argument("--tune-budget", type=float, metavar="MINUTES", help="begin no stage of the tune after them")
    parser.add_argument("--tune-trial-seconds", type=float, metavar="S", help="give up a stage that takes longer")
    parser.add_argument("--tune-random", type=int, metavar="N", help="N random points instead of all combinations")
    parser.add_argument("overrides", nargs="*", help="settings to change, such as evaluate.convention=skimage")
    options, more = parser.parse_known_args(arguments)
    settings = config.load(Settings, options.cfg, [*options.overrides, *more], options.params)
    from emcore.metrics.evaluation import check_evaluate

    check_evaluate(settings.evaluate)
    if not options.tune and (options.tune_budget is not None or options.tune_random is not None
                             or options.tune_trial_seconds is not None):
        raise InputError("--tune-budget, --tune-trial-seconds and --tune-random belong to --tune: add it")
    if options.stored:
        folder = options.results or Path(options.stored[0]).parent
        if options.tune:
            return tune_decoding(settings, folder, options)
        settings, files = results.stand_in(settings, options.stored)
        return score(settings, folder, files, options.again, stored=True)
    if not settings.data.test:
        raise InputError("there is nothing to score or to show: set data.test, or name a stored prediction by --from")
    folder = options.results or results.newest(settings)
    if not folder.is_dir():
        raise InputError(f"there is no folder of results {folder}: run infer.py first, with the same --results")
    if options.tune:
        return tune_decoding(settings, folder, options)
    return score(settings, folder, results.files_of(settings, folder), options.again, stored=False)


def score(settings: Settings, folder: Path, files: Sequence[tuple[Path, Path]], again: bool, stored: bool) -> int:
    from emcore.blocks.tables import parts_of
    from emcore.metrics.evaluation import pooled, score_volume
    from emcore.progress import Working
    from emcore.report.page import write_report
    from emcore.report.scores import with_others, write_scores

    told = list(checked(settings, files, again))  # all are checked before the first is scored
    chosen, found = [entry for entry in told if entry[3] is not None], {}
    for name, prediction, labels, truth, mask, made in chosen:
        with Working(f"score {name}"):
            found[name] = score_volume(settings.evaluate, truth, labels, prediction, settings.data, mask,
                                       parts_of) | made
    if len(found) > 1:
        found[f"all {len(found)} volumes"] = pooled(settings.evaluate, found)
    if chosen:
        print(write_scores(folder, settings.evaluate, found))
    found |= {name: {"scores": [], **made} for name, _, _, truth, _, made in told if truth is None}
    if chosen and settings.evaluate.sweep is not None:
        from emcore.systems.dbmim.sweep import write_sweep

        print(write_sweep(folder, settings, [(name, prediction, truth) for name, prediction, _, truth, *_ in chosen]))
    own = results.run_folder(settings)
    page = own if folder.resolve().parent == own.resolve() else folder
    with Working("draw the page"):
        page = write_report(page, folder, settings, with_others(folder, found), files if stored else ())
    print(page)
    return 0


def checked(settings: Settings, files: Sequence[tuple[Path, Path]], again: bool) -> Iterator[tuple]:
    """(name, prediction, labels if they count, truth if there is one, mask, what made them) of every volume."""
    data = settings.data
    for number, (prediction, labels) in enumerate(files):
        volume, name = data.test[number], result_names(data)[number]
        if not is_there(prediction) and not labels.exists():
            raise InputError(f"there is neither {prediction} nor {labels}: run infer.py first")
        truth, mask = (path and located(data.folder, path) for path in (volume.label, volume.mask))
        for path in filter(None, (truth, mask)):
            open_volume(path)  # says what is wrong with it
        counted = labels if labels.exists() and settings.decode.kind != "none" else None
        if labels.exists() and not counted:
            print(f"{name}: {labels.name} is not scored, because decode.kind is none")
        lines, made_by = results.check_scored(settings, number, counted, prediction, again)
        lines.append("there is no truth (data.test label), so nothing is scored" if truth is None else
                     f"the truth is {truth}" + (f", scored where {mask} is not 0" if mask else ""))
        print("\n".join(f"{name}: {line}" for line in lines))
        yield name, prediction, counted, truth, mask, {
            "made": lines, "made_by": made_by, "evaluate": config.to_table(settings.evaluate)}


def tune_decoding(settings: Settings, folder: Path, options: argparse.Namespace) -> int:
    from emcore.decode.tune import heat_table, tune
    from emcore.report.heat_map import write_heat_map

    rows = tune(settings, folder, options.stored, options.tune_budget, options.tune_random,
                options.tune_trial_seconds)
    names, ends, values = heat_table(rows, settings.tune.objective)
    if names:
        write_heat_map(folder / "tune.svg", f"{settings.tune.objective}, best threshold", names, ends, values)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
