"""Predicts the test volumes of a config and decodes them into labels; a killed run continues where it stopped.

    python infer.py --cfg configs/demo.toml                    # newest checkpoint of the run
    torchrun --nproc-per-node=4 infer.py --cfg configs/demo.toml   # the slabs are shared out
    python infer.py --cfg configs/demo.toml --cut 0.35         # other labels from the stored merge tree, in seconds
    python infer.py --cfg configs/demo.toml --from a_prediction.h5   # decode a stored prediction; takes --cut, too
    python infer.py --cfg configs/demo.toml --export net.pt2   # the net as a file for other programs
    python infer.py --cfg configs/demo.toml --export net.pt    # a small checkpoint to share: only the weights

Results stand in outputs/<name>/results_step=<N>: <volume>_prediction.h5 and <volume>_labels.h5.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from emcore import config
from emcore.errors import InputError, run_command
from emcore.settings import Settings
from emcore.settings.data import result_name
from emcore.settings.target import affinity_offsets


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", required=True, help="TOML file with the settings of the run")
    parser.add_argument("--params", help="TOML file laid over --cfg, such as the best_params.toml of a tune")
    parser.add_argument("--checkpoint", help="file to predict with; the newest of the run by default")
    parser.add_argument("--from", dest="stored", help="a stored prediction to decode; nothing is predicted")
    parser.add_argument("--cut", type=float, help="threshold at which to cut the stored merge trees again")
    parser.add_argument("--export", metavar="FILE", help=".pt2: the net for other programs; .pt: only its weights")
    parser.add_argument("overrides", nargs="*", help="settings to change, such as infer.batch=1")
    options, more = parser.parse_known_args(arguments)
    settings = config.load(Settings, options.cfg, [*options.overrides, *more], options.params)
    if options.stored:
        return decode_stored(settings, Path(options.stored), options.cut)
    from emcore.engine import checkpoint

    folder = Path(settings.outputs) / settings.name
    path = options.checkpoint or settings.infer.checkpoint or checkpoint.newest(folder / "checkpoints")
    if path is None:
        raise InputError(f"{folder / 'checkpoints'} has no checkpoint: run train.py first, or name one by --checkpoint")
    if options.cut is not None:
        return cut_again(settings, folder, Path(path), options.cut)
    if options.export:
        return export(settings, Path(path), Path(options.export))
    return predict_all(settings, folder, Path(path))


def predict_all(settings: Settings, folder: Path, path: Path) -> int:
    from emcore.engine import checkpoint, ranks
    from emcore.engine.pages import keep_pages
    from emcore.predict import predict
    from emcore.predict.arithmetic import comply, decide

    if not settings.data.test:
        raise InputError("there is nothing to predict: set data.test")
    device = ranks.choose_device(settings.device)
    keep_pages(device.type)
    content = checkpoint.read(path)
    model = checkpoint.model_of(content, path, device)
    step = checkpoint.step_of(content)
    weights = "averaged" if content.get("ema") else "plain"
    offsets = affinity_offsets(settings.target)
    results = folder / f"results_step={step}"
    results.mkdir(parents=True, exist_ok=True)
    window = settings.infer.window or settings.data.patch
    arithmetic = decide(settings, model, 1000)  # what is recorded with a result comes in place of this
    model = comply(arithmetic, settings, model)
    print(f"{path}, step {step}, {weights} weights, {arithmetic}", flush=True)
    for number, volume in enumerate(settings.data.test):
        target = results / f"{result_name(settings.data, number)}_prediction.h5"
        start = time.monotonic()
        if not target.exists():
            predict(model, volume, target, window=window, infer=settings.infer, data=settings.data, offsets=offsets,
                    arithmetic=arithmetic, provenance={"checkpoint": str(path), "step": step})
        if not target.exists():
            continue  # another process is finishing it
        print(f"{target}: {time.monotonic() - start:.1f} s", flush=True)
        labels = results / f"{result_name(settings.data, number)}_labels.h5"
        if settings.decode.kind != "none" and not is_decoded(labels):
            decode_once(settings, target, labels)
    return 0


def decode_once(settings: Settings, prediction: Path, labels: Path) -> None:
    """Decodes, unless another process is at it or was when this one looked."""
    from emcore.predict.decode import decode
    from emcore.predict.parts import claimed
    from emcore.volumes import open_volume

    lock = labels.with_suffix(".lock")
    with claimed(lock) as mine:
        if not mine:
            return
        if not is_decoded(labels):
            start = time.monotonic()
            decode(open_volume(prediction), settings.decode, labels)
            print(f"{labels}: {time.monotonic() - start:.1f} s", flush=True)
        lock.unlink(missing_ok=True)


def decode_stored(settings: Settings, stored: Path, threshold: float | None) -> int:
    from emcore.predict.decode import decode, recut
    from emcore.volumes import open_volume

    name = stored.stem.removesuffix("_prediction")
    out = stored.with_name(f"{name}_labels.h5")
    if threshold is None:
        print(decode(open_volume(stored), settings.decode, out))
    else:
        print(recut(out, threshold, stored.with_name(f"{name}_labels_{threshold:g}.h5"), stored))
    return 0


def cut_again(settings: Settings, folder: Path, path: Path, threshold: float) -> int:
    from emcore.engine import checkpoint
    from emcore.predict.decode import recut

    results = folder / f"results_step={checkpoint.step_of(checkpoint.read(path))}"
    for number in range(len(settings.data.test)):
        name = result_name(settings.data, number)
        stored = results / f"{name}_labels.h5"
        if not stored.exists():
            raise InputError(f"there is no {stored}: run infer.py without --cut first")
        print(recut(stored, threshold, results / f"{name}_labels_{threshold:g}.h5", results / f"{name}_prediction.h5"))
    return 0


def export(settings: Settings, path: Path, out: Path) -> int:
    import torch

    from emcore.engine import checkpoint
    from emcore.predict.export import export_model

    content = checkpoint.read(path)
    model = checkpoint.model_of(content, path, torch.device("cpu"))
    if out.suffix == ".pt":
        checkpoint.save_weights(content, out)
        print(out)
        return 0
    data = settings.data
    notes = {"offsets": affinity_offsets(settings.target), "normalise": data.normalise, "percentiles": data.percentiles,
             "divide": data.divide, "activation": [vars(activation) for activation in settings.infer.activation],
             "checkpoint": str(path)}
    print(export_model(model, out, settings.infer.window or data.patch, settings.model.in_channels, notes))
    return 0


def is_decoded(labels: Path) -> bool:
    from emcore.volumes import list_datasets

    return labels.exists() and any(item.name == "labels" for item in list_datasets(labels))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
