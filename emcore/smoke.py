"""train.py --smoke: a recipe from training to scores in seconds, small in every size and unchanged in everything else.

One reduction for all recipes. The files that the recipe names are written under the same names, datasets and formats,
filled with synthetic tissue; the run takes its own net at an eighth of the width, its own losses, targets,
augmentations, decoding and scores, for a few steps on the processor.
"""

import runpy
import time
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from pathlib import Path, PurePath

import numpy as np

from emcore import config
from emcore.__main__ import script_path
from emcore.errors import InputError
from emcore.files import remove, reported, write_text
from emcore.locks import RUN_LOCK, only_training
from emcore.segment import skeleton_volume
from emcore.settings import Settings
from emcore.settings.data import Data, VolumeFiles
from emcore.settings.model import LightUNETRSizes, MedNeXtModel, Model, RSUNetModel, UNetV1Model, check_patch
from emcore.settings.target import BinaryTarget, PartnersTarget, PolarityTarget
from emcore.settings.train import Curve, NoPolicy, Schedule, Train, WarmedUp
from emcore.synth import Tissue, synthesize
from emcore.volumes import create_volume, split_reference
from emcore.volumes.address import is_address, parsed

LEAST = (8, 32, 32)  # voxels of a patch, at least
STEPS = 4
NARROWER = 8  # times fewer channels
GRAIN = (40.0, 16.0, 16.0)  # nm of a voxel when the tissue is made: coarse, so that few voxels hold several neurons
PLACES = ("image", "label", "mask", "skeleton", "found")


def smoke(path: str, overrides: Sequence[str]) -> int:
    """0 once training, prediction and scores of the reduced recipe ran; its page is in outputs/smoke/<name>."""
    start = time.monotonic()
    settings = config.load(Settings, path, overrides)
    folder = Path(settings.outputs) / "smoke"
    ran = run_reduced(settings, Path(path), folder)
    print(f"smoke test of {path} passed in {time.monotonic() - start:.0f} s: {ran}", flush=True)
    return 0


def run_reduced(settings: Settings, path: Path, folder: Path) -> str:
    """The scripts that ran; a recipe that starts from another one's weights runs that one first."""
    small = reduced(settings, folder)
    ran = []
    if settings.train.start_from:
        before = path.parent / f"{Path(settings.train.start_from).parent.parent.name}.toml"
        if before.exists() and before.resolve() != path.resolve():
            first = config.load(Settings, before)
            ran.append(run_reduced(first, before, folder))
            weights = folder / first.name / "checkpoints" / f"step_{STEPS:09d}.pt"
            small = replace(small, train=replace(small.train, start_from=str(weights)))
    with only_training(folder / settings.name):
        for old in (folder / settings.name).iterdir():  # else it would resume, and have nothing to do
            if old.name != RUN_LOCK:
                remove(old)
        write_files(settings, small)
        recipe = folder / settings.name / "smoke.toml"
        write_text(recipe, config.to_toml(small))
        scripts = ["train"] + ["infer"] * bool(small.data.test)
        scripts += ["evaluate"] * any(volume.label for volume in small.data.test)
        for script in scripts:
            started = time.monotonic()
            code = runpy.run_path(str(script_path(script)))["main"](["--cfg", str(recipe)])
            if code:
                raise InputError(f"{script} of the reduced {path} ended with {code}")
            ran.append(f"{script} {time.monotonic() - started:.1f} s")
    return ", ".join(ran)


def reduced(settings: Settings, folder: Path) -> Settings:
    """The same run with small sizes, writing to `folder`."""
    model = narrow(settings.model)
    patch = small_patch(model, settings.data.patch)
    share = prod(patch) / prod(settings.data.patch)
    pretrain = settings.pretrain
    if pretrain is not None:
        policy = pretrain.policy
        if not isinstance(policy, NoPolicy):
            policy = replace(policy, hidden=16, warmup=min(1, policy.warmup), freeze=min(STEPS - 1, policy.freeze))
        pretrain = replace(pretrain, decoder_width=model.transformer.width, policy=policy)
    infer, data, evaluate = settings.infer, settings.data, settings.evaluate
    return replace(
        settings, outputs=str(folder), device="cpu", model=model, pretrain=pretrain, train=short(settings.train),
        data=replace(data, folder=str(folder / settings.name / "data"), patch=patch, workers=0, storage="lazy",
                     pad=tuple(min(p, n // 2) for p, n in zip(data.pad, patch)), resolution=grid_of(data),
                     reject_below=round(data.reject_below * share),
                     train=tuple(placed(volume) for volume in data.train),
                     validation=tuple(placed(volume) for volume in data.validation),
                     test=tuple(placed(volume) for volume in data.test[:1])),
        evaluate=replace(evaluate, crop=None, synapse_size=round(evaluate.synapse_size * share),
                         synapse_margin=min(1, evaluate.synapse_margin)),
        infer=replace(infer, checkpoint="", window=None, batch=min(4, infer.batch), tile=None,
                      pad=tuple(min(p, n // 4) for p, n in zip(infer.pad, patch))))


def narrow(model: Model) -> Model:
    """The net with its depth, its kernels and its heads, and an eighth of its channels."""
    def fewer(channels: Sequence[int], least: int) -> tuple[int, ...]:
        return tuple(max(least, count // NARROWER) for count in channels)

    if isinstance(model, RSUNetModel):
        return replace(model, rsunet=replace(model.rsunet, width=fewer(model.rsunet.width, 4)))
    if isinstance(model, UNetV1Model):  # its gates divide by up to 16
        return replace(model, unet_v1=replace(model.unet_v1, filters=fewer(model.unet_v1.filters, 16)))
    if isinstance(model, MedNeXtModel):
        return replace(model, mednext=replace(model.mednext, width=max(4, model.mednext.width // NARROWER)))
    sizes = replace(model.transformer, width=4 * model.transformer.heads)
    if isinstance(sizes, LightUNETRSizes):
        sizes = replace(sizes, features=max(4, sizes.features // NARROWER))
    return replace(model, transformer=sizes)


def small_patch(model: Model, patch: Sequence[int]) -> tuple[int, int, int]:
    """The smallest patch from LEAST up that the net takes; a cube stays a cube."""
    check_patch(model.multiple, patch)
    sizes = tuple(min(size, -(-least // unit) * unit) for size, least, unit in zip(patch, LEAST, model.multiple))
    return (max(sizes),) * 3 if len(set(patch)) == 1 else sizes


def short(train: Train) -> Train:
    """A few steps in plain arithmetic, with everything that a long run writes."""
    accumulate = min(2, train.accumulate)
    return replace(
        train, steps=STEPS, batch=2 * accumulate, accumulate=accumulate, precision="fp32", compile="off",
        layout="contiguous", log_steps=2, preview_steps=2, start_from="",
        schedule=quick(train.schedule),
        ema=replace(train.ema, warmup=min(1, train.ema.warmup)),
        save=replace(train.save, steps=2, last=1, at=()),
        validate=replace(train.validate, steps=min(2, train.validate.steps), crops=2))


def quick(schedule: Schedule) -> Schedule:
    """The schedule of a run of a few steps."""
    if isinstance(schedule, WarmedUp):
        schedule = replace(schedule, warmup=min(1, schedule.warmup))
    return replace(schedule, every=1) if isinstance(schedule, Curve) else schedule


def grid_of(data: Data) -> tuple[float, float, float]:
    return data.resolution or GRAIN


def placed(volume: VolumeFiles) -> VolumeFiles:
    """The volume with paths that stay inside the folder of the data, and without a box of the real one."""
    paths = {place: inside(getattr(volume, place)) for place in PLACES if getattr(volume, place) is not None}
    return replace(volume, box=None, **paths)


def inside(reference: str) -> str:
    """A path below the folder of the data; of a pattern, the name of one file that fits it; of an address, a file."""
    if is_address(reference):
        return parsed(reference).path.replace("/", "_") + ".h5"
    parts = [part for part in PurePath(reference).parts if part not in ("..", PurePath(reference).anchor)]
    return "/".join(parts).replace("*", "0")


def write_files(settings: Settings, small: Settings) -> None:
    """Every file that the recipe names: the same tissue in each, with the truth that its target wants."""
    shape = tuple(max(12, -(-3 * size // 2)) for size in small.data.patch)
    tissue = synthesize(shape, GRAIN, settings.seed, synapses=6)
    truth = truth_of(settings, tissue)
    contents = {"image": lambda: tissue.raw, "label": lambda: background(truth, settings.data.background),
                "mask": lambda: np.ones(shape, np.uint8),
                "skeleton": lambda: skeleton_volume(truth, grid_of(small.data)),
                "found": lambda: np.zeros(shape, np.uint32)}
    written = set()
    for volume in (*small.data.train, *small.data.validation, *small.data.test):
        for place, content in contents.items():
            reference = getattr(volume, place)
            if reference is None or reference in written:
                continue
            written.add(reference)
            path, dataset = split_reference(reference)
            target = Path(small.data.folder) / path
            with reported(target):
                target.parent.mkdir(parents=True, exist_ok=True)
            array = content()
            name = f"{target}:{dataset}" if dataset else str(target)
            with create_volume(name, array.shape, array.dtype, grid_of(small.data)) as out:
                out[...] = array


def truth_of(settings: Settings, tissue: Tissue) -> np.ndarray:
    """Sides of synapses for polarity and partners, clefts where all targets are plain foreground, else neurons."""
    kinds = {type(target) for target in settings.target}
    truth = (tissue.polarity if kinds & {PolarityTarget, PartnersTarget} else tissue.clefts if kinds == {BinaryTarget}
             else tissue.neuron_ids)
    return truth.astype(np.uint16)


def background(truth: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """The truth with 0 as the id that the recipe names for background, if it names one."""
    if not ids:
        return truth
    return np.where(truth == 0, np.uint64(ids[0]), truth.astype(np.uint64))
