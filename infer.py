"""Predicts the test volumes of a config and decodes them into labels; a killed run continues where it stopped.

    python infer.py --cfg configs/demo.toml                    # newest checkpoint of the run
    torchrun --nproc-per-node=4 infer.py --cfg configs/demo.toml   # the tiles are shared out
    python infer.py --cfg configs/demo.toml decode.threshold=0.4   # the stored prediction is decoded again
    python infer.py --cfg configs/demo.toml --cut 0.35         # other labels from the stored merge tree, in seconds
    python infer.py --cfg configs/demo.toml --edits edits.csv  # hold what people decided (docs/proofreading.md)
    python infer.py --cfg configs/demo.toml --from a_prediction.h5   # decode a stored prediction; takes --cut, --edits
    python infer.py --cfg configs/demo.toml --status           # where a run stands, from any machine
    python infer.py --cfg configs/demo.toml --export net.pt2   # the net as a file for other programs
    python infer.py --cfg configs/demo.toml --export net.pt    # a small checkpoint to share: only the weights

Results stand in outputs/<name>/results_step=<N>: <volume>_prediction.h5 and <volume>_labels.h5. Those of a checkpoint
that is not the run's own stand in outputs/<name>_weights=<file>. Each file holds a record of what made it: a prediction
of other weights, settings or another volume is never taken for the one that was asked for. A volume that does not fit
into memory is decoded in blocks, to the same labels (docs/blocks.md).
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from emcore import config, record, results
from emcore.errors import InputError, run_command
from emcore.settings import Settings
from emcore.settings.target import affinity_offsets
from emcore.system import wait_asleep


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", required=True, help="TOML file with the settings of the run")
    parser.add_argument("--params", help="TOML file laid over --cfg, such as the best_params.toml of a tune")
    parser.add_argument("--checkpoint", help="file to predict with, best, or a name that python -m emcore models "
                        "lists; the newest of the run by default")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="where results go, in place of the usual folder")
    parser.add_argument("--again", action="store_true", help="replace a prediction that was made with other settings")
    parser.add_argument("--from", dest="stored", help="a stored prediction to decode; nothing is predicted")
    parser.add_argument("--cut", type=float, help="threshold at which to cut the stored merge trees again")
    parser.add_argument("--edits", metavar="FILE", help="joins, splits and drops to hold in the labels that are there, "
                        "or with --cut in those of another threshold; they are written beside them")
    parser.add_argument("--status", action="store_true", help="say how far predictions and labels are, and do nothing")
    parser.add_argument("--export", metavar="FILE", help=".pt2: the net for other programs; .pt: only its weights")
    parser.add_argument("overrides", nargs="*", help="settings to change, such as infer.batch=1")
    options, more = parser.parse_known_args(arguments)
    settings = config.load(Settings, options.cfg, [*options.overrides, *more], options.params)
    refuse_idle(options)
    if options.stored and options.status:
        return tell_status([results.files_of_stored(options.stored)])
    if options.stored:
        return decode_stored(settings, Path(options.stored), options.cut, options.edits)
    choice = options.checkpoint or settings.infer.checkpoint
    if options.status:
        return tell_status(results.files_of(settings, options.results or results.of_checkpoint(settings, choice)))
    if options.cut is not None or options.edits is not None:
        return cut_again(settings, options.results or results.of_checkpoint(settings, choice), options.cut,
                         options.edits)
    if not options.export and not options.again and (there := all_there(settings, choice, options.results)):
        return predict_all(settings, *there)
    print(f"{results.run_folder(settings)}: reading the weights ({choice or 'the newest'})", flush=True)
    wait_asleep()
    from emcore.engine import checkpoint, weights  # imports torch, which nothing above needs
    from emcore.engine.memory import keep_pages
    from emcore.engine.ranks import choose_device
    from emcore.systems.checkpoints import ours

    path, content, file = weights.taken(results.run_folder(settings), choice)
    content = ours(content)
    if options.export:
        return export(settings, path, content, Path(options.export))
    check_volumes(settings)
    folder = options.results or results.folder_of(settings, path, checkpoint.step_of(content))
    keep_pages(choose_device(settings.device).type)
    model = checkpoint.model_of(content, path, choice=settings.infer.weights)
    used = weights.described(content, path, settings.infer.weights, model, file)
    return predict_all(settings, folder, used, weights.net_table(content), model, options.again)


def refuse_idle(options: argparse.Namespace) -> None:
    """Refuses what would do nothing beside what else is asked for."""
    given = [flag for flag, there in (
        ("--checkpoint", options.checkpoint), ("--results", options.results), ("--again", options.again),
        ("--export", options.export), ("--cut", options.cut is not None), ("--edits", options.edits is not None))
        if there]
    for asked, does, takes in (
            (options.status, "--status only tells how far results are", ("--checkpoint", "--results")),
            (options.stored, "--from decodes the file that it names, beside that file", ("--cut", "--edits")),
            ("--cut" in given or "--edits" in given, "--cut and --edits make labels from those that are there",
             ("--checkpoint", "--results", "--cut", "--edits"))):
        aside = [flag for flag in given if flag not in takes]
        if asked and aside:
            raise InputError(f"{does}; {' and '.join(aside)} would do nothing: leave it out")


def check_volumes(settings: Settings) -> None:
    """Says which volume is not there, before a net is built."""
    if not settings.data.test:
        raise InputError("there is nothing to predict: set data.test")
    for volume in settings.data.test:
        record.of_volume(settings, volume)


def all_there(settings: Settings, choice: str, folder: Path | None) -> tuple[Path, dict, dict] | None:
    """The folder of predictions that are all there and whole, their weights and the table [model]; torch is not needed
    to tell. None where anything else must be looked at."""
    from emcore.prediction import begun

    if (known := results.known_weights(settings, choice, folder)) is None:
        return None
    predictions = [prediction for prediction, _ in results.files_of(settings, known[0])]
    for prediction in predictions:
        begun.mend(prediction)
    return known if all(prediction.exists() for prediction in predictions) else None


def predict_all(settings: Settings, folder: Path, used: dict, net: dict, model=None, again: bool = False) -> int:
    """Predicts and decodes what is not there. used: what the record says of the weights; net: its table [model].

    model: None where every prediction is there.
    """
    from emcore.prediction import begun

    print(f"{record.told_weights(used)}; results in {folder}", flush=True)
    files = results.files_of(settings, folder)
    wanted = [record.of_prediction(settings, number, used, net) for number in range(len(files))]
    for (prediction, _), plan in zip(files, wanted):  # all of them before any work
        if plan["volume"]["resolution"] is None and model is not None:
            from emcore.prediction.activation import check_vector

            check_vector(settings.infer, plan["volume"]["image"])
        begun.mend(prediction)
        begun.check_or_clear(settings, prediction, plan, again)
    choices = [planned(settings, plan, *paths) for paths, plan in zip(files, wanted)]
    for number, ((prediction, labels), plan) in enumerate(zip(files, wanted)):
        if prediction.exists():
            unknown = "" if record.read(prediction) else ", without a record of what made it"
            print(f"{prediction}: already there{unknown}", flush=True)
            begun.close_if_left(prediction)
        elif model is None:
            raise InputError(f"{prediction} was removed just now: run the same command again")
        else:
            predict_one(settings, number, model, plan, prediction)
        if settings.decode.kind != "none":
            decode_once(settings, number, prediction, labels, choices[number])
    return 0


def predict_one(settings: Settings, number: int, model, plan: dict, prediction: Path) -> None:
    from emcore.blocks import share
    from emcore.engine.arithmetic.mode import Arithmetic
    from emcore.engine.arithmetic.prediction import comply, decide
    from emcore.prediction import Output, begun, predict, tiles
    from emcore.prediction.windows import passes

    start, volume, image = time.monotonic(), settings.data.test[number], plan["volume"]
    if image["resolution"] is None:
        print(f"{image['image']} does not say its resolution: a voxel counts as 1 nm; data.resolution sets it")
    window, size = settings.infer.window or settings.data.patch, record.size_of(image)
    stored = begun.begun(prediction)
    if stored is None:
        decided = decide(settings, model, passes(size, settings.infer, window))
        bytes_read = model.in_channels * np.dtype(image["dtype"]).itemsize
        task = tiles.Task(size, replace(settings.infer, window=tuple(window)), bytes_read, channels_of_net(plan))
        way = tiles.way_of(task, prediction, share.place()[1])
        decided = asdict(decided) | {"batch": settings.infer.batch}
        if decided["device"] == "cuda" and way.tile[1:] != size[1:]:  # windows at the end of a row make smaller batches
            decided["tile"] = list(way.tile[1:])
        stored = begun.begin(prediction, way, plan | {"volume": record.with_content(image), "arithmetic": decided})
    results.check_there(settings, prediction, stored[1], plan, "begun")  # perhaps by another command just now
    plan = stored[1]
    decided = {name: value for name, value in plan["arithmetic"].items() if name != "tile"}
    infer = replace(settings.infer, batch=decided.pop("batch"))
    arithmetic = Arithmetic(**decided)
    print(f"{prediction.name}: {arithmetic}", flush=True)
    said = {record.ATTRIBUTE: plan, "checkpoint": plan["weights"]["checkpoint"], "step": plan["weights"]["step"]}
    predict(comply(arithmetic, settings, model), volume, Output(prediction, said, replaces=False), window=window,
            infer=infer, data=settings.data, offsets=affinity_offsets(settings.target), arithmetic=arithmetic)
    print(f"{prediction}: {time.monotonic() - start:.1f} s", flush=True)


def channels_of_net(plan: dict) -> int:
    """Channels that a net predicts, by its table in a record."""
    model = plan["settings"]["model"]
    return sum(channels for _, channels in model.get("heads", ())) or model.get("out_channels", 3)


def planned(settings: Settings, plan: dict, prediction: Path, labels: Path):
    """How the labels of a volume will be made, which is told; refused here where neither way has the memory."""
    if settings.decode.kind == "none" or (prediction.exists() and record.has_labels(labels)):
        return None  # decode_once knows whether labels that are there are wanted
    from emcore.blocks.choice import Task, choose
    from emcore.prediction.tiles import DTYPES

    record.of_classifier(settings.decode)  # A missing file is refused before hours of prediction.
    channels = len(settings.infer.select) or channels_of_net(plan)
    itemsize = np.dtype(DTYPES[settings.infer.dtype]).itemsize
    offsets = (affinity_offsets(settings.target) or []) if settings.decode.kind == "mutex" else []
    reach = tuple(max((abs(step[axis]) for step in offsets), default=0) for axis in range(3))
    choice = choose(Task(record.size_of(plan["volume"]), channels, itemsize, settings.decode, reach), settings.blocks)
    print(f"{plan['volume']['image']}: {choice.told}", flush=True)
    return choice


def decode_once(settings: Settings, number: int, prediction: Path, labels: Path, planned) -> None:
    """Decodes, unless the labels are those that are asked for; of several processes one does it, or each has a part.

    planned: what the user was told about how it will be done.
    """
    from emcore.blocks.run import choice_of, damaged_blocks
    from emcore.blocks.whole import make_once

    def why_make() -> str | None:
        """Why labels are to be made; empty where there are none, None where those that are there are wanted."""
        if not record.has_labels(labels):
            return ""
        if damaged := damaged_blocks(labels):
            return f"{damaged[0]} is missing or damaged" + (f", with {len(damaged) - 1} more" if damaged[1:] else "")
        return results.why_decode(labels, prediction, wanted)

    def make() -> None:
        start = time.monotonic()
        if why := why_make():
            print(f"{labels} is made again: {why}", flush=True)
        truth = record.of_truth(settings, number)
        decode_one(settings, prediction, labels, wanted | ({"truth": truth} if truth else {}), choice)
        print(f"{labels}: {time.monotonic() - start:.1f} s", flush=True)

    wanted = record.of_labels(settings, prediction)
    if why_make() is None:
        print(f"{labels}: already there", flush=True)
        return
    choice = choice_of(prediction, settings.decode, settings.blocks, labels, wanted)
    if planned is None or choice.grid != planned.grid:  # a run that was begun goes on in its blocks
        print(f"{labels}: {choice.told}", flush=True)
    if choice.grid is not None:  # any number of processes may work on the blocks
        make()
        return
    make_once(labels, make, lambda: why_make() is None)


def decode_one(settings: Settings, prediction: Path, labels: Path, made_of: dict, choice) -> None:
    """Decodes at once or in blocks, as the choice says."""
    from emcore.blocks.run import decode_in_blocks
    from emcore.decode.labels import decode
    from emcore.progress import Working
    from emcore.volumes import open_volume

    if choice.grid is None:
        with Working(f"decode {prediction.name}"):
            decode(open_volume(prediction), settings.decode, labels, made_of)
    else:
        if choice.advice:
            print(f"{prediction}: {choice.advice}", flush=True)
        decode_in_blocks(prediction, settings.decode, labels, choice, settings.blocks, made_of)


def decode_stored(settings: Settings, stored: Path, threshold: float | None, edits: str | None) -> int:
    from emcore.blocks.run import choice_of

    files = results.files_of_stored(stored)
    if threshold is not None or edits is not None:
        return cut_each(settings, [files], threshold, edits)
    _, labels = files
    made_of = record.of_labels(settings, stored)
    choice = choice_of(stored, settings.decode, settings.blocks, labels, made_of)
    print(choice.told, flush=True)
    decode_one(settings, stored, labels, made_of, choice)
    print(labels)
    return 0


def cut_again(settings: Settings, folder: Path, threshold: float | None, edits: str | None) -> int:
    return cut_each(settings, results.files_of(settings, folder), threshold, edits)


def cut_each(settings: Settings, files: Sequence[tuple[Path, Path]], threshold: float | None,
             edits: str | None) -> int:
    """Makes labels of another threshold, or with edits, from predictions and labels that are there."""
    from emcore.segment import read_edits

    if edits is not None and len(files) > 1:
        raise InputError(f"--edits are places in one volume, and data.test has {len(files)}: name the prediction of "
                         f"yours by --from, such as --from {files[0][0]}")
    decisions = [] if edits is None else read_edits(edits)
    for prediction, labels in files:
        if not labels.exists():
            flag = "--cut" if edits is None else "--edits"
            raise InputError(f"there is no {labels}: run infer.py without {flag} first")
        out = labels.with_name(f"{labels.stem}{'' if threshold is None else f'_{threshold:g}'}"
                               f"{'' if edits is None else f'_edits={Path(edits).stem}'}.h5")
        before = record.read(out, record.LABELS) if decisions and record.has_labels(out) else None
        if before is not None and before.get("edits") != record.of_edits(decisions)["edits"]:
            print(f"{out} is made again: it held other edits", flush=True)
        print(cut_one(settings, labels, threshold, out, prediction, decisions))
    return 0


def cut_one(settings: Settings, labels: Path, threshold: float | None, out: Path, prediction: Path,
            edits: Sequence) -> Path:
    """Labels beside those that are there, made in the way in which these were made."""
    from emcore.blocks.run import cut_in_blocks, is_in_blocks
    from emcore.decode.labels import recut

    if is_in_blocks(labels):
        return cut_in_blocks(labels, threshold, out, settings.blocks, edits)
    return recut(labels, threshold, out, prediction, edits)


def tell_status(files: Sequence[tuple[Path, Path]]) -> int:
    from emcore.blocks.run import status_of

    for prediction, labels in files:
        print("\n".join(status_of(prediction, labels)), flush=True)
    return 0


def export(settings: Settings, path: Path, content: dict, out: Path) -> int:
    from emcore.engine import checkpoint
    from emcore.prediction.export import export_model

    model = checkpoint.model_of(content, path, choice=settings.infer.weights)
    if out.suffix == ".pt":
        checkpoint.save_weights(content, out, settings.infer.weights)
        print(out)
        return 0
    data = settings.data
    notes = {"offsets": affinity_offsets(settings.target), "normalise": data.normalise, "percentiles": data.percentiles,
             "divide": data.divide, "activation": [vars(activation) for activation in settings.infer.activation],
             "checkpoint": str(path)}
    print(export_model(model, out, settings.infer.window or data.patch, model.in_channels, notes))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
