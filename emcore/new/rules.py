"""The rules by which `new` chooses; docs/tutorials/own_data.md states each of them in words."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import Any

from emcore.errors import InputError
from emcore.new.facts import FEW, Facts

TASKS = ("neurons", "membranes", "mask", "synapses")
HELD_OUT = 0.2  # share of the labels that validates, and is predicted and scored
LEAST_TRUTH = 0.05  # share of all labelled voxels that the held-out part needs
VIEW = 2000.0  # nm that a patch is wide, at least, where objects are seen by what surrounds them
ACROSS = 4  # widths of the usual object that such a patch is wide, at least
RARE = 0.05  # share of labelled voxels below which they count three times
GAP = 5  # pixels that the thinnest objects are wide, at least, where a line is taken out between those that touch
SMOOTH = 9  # pixels that the usual object is wide, at least, where fragments are smoothed over three
UNLABELLED = 0.02  # share of voxels far from every object from which tissue counts as unlabelled
SHEETS = 8.0  # so many times deeper than wide, a voxel is of a section that is seen by itself
FOLDED = 8  # blocks along y and x that a patch has at least, as the levels of a net that folds halve them thrice
STEPS = 1000  # a guess, until a step is timed
Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Kind:
    """What the depth of a voxel decides."""

    name: str
    patch: Triple
    width: tuple[int, ...]
    down: tuple[Triple, ...]  # empty: sections stay as many at every level
    depth_2d: int  # levels that see sections one by one
    batch: int
    steps: tuple[int, ...]  # voxels that affinities reach along z
    windows: tuple[Triple, ...]  # the larger ones come first


BLOCK = Kind("block", (64, 64, 64), (16, 32, 48, 64), ((2, 2, 2),) * 3, 0, 2, (1, 3, 9),
             ((64, 256, 256), (40, 256, 256), (64, 128, 128), (64, 64, 64)))
STACK = Kind("stack of thick sections", (16, 128, 128), (16, 32, 48, 64), (), 1, 2, (1, 2),
             ((16, 512, 512), (16, 256, 256), (16, 128, 128)))
SHEET = Kind("stack of very thick sections", (6, 192, 192), (16, 32, 48, 64, 80), (), 5, 1, (1,),
             ((6, 768, 768), (6, 384, 384), (6, 192, 192)))
THIN = replace(SHEET, name="stack of few sections")


def kind_of(facts: Facts) -> Kind:
    if facts.shape[0] < FEW:
        return THIN
    return SHEET if facts.depth >= SHEETS else STACK if facts.is_flat else BLOCK


def recipe(name: str, image: str, labels: str, task: str, facts: Facts) -> tuple[dict[str, Any], list[str]]:
    """The table of a run, and what is not known or may be wrong."""
    check_task(task, labels, facts)
    notes = doubts(task, facts)
    net = net_of(task, facts)
    patch = patch_of(task, facts, net)
    axis, held_out, learned, box = held_out_of(facts, patch)
    is_neurons = task == "neurons"
    files = {"image": image, "label": labels}
    data = {"patch": list(patch), "percentiles": [1.0, 99.0], "split_axis": axis, "train_part": learned,
            "validation_part": held_out, "train": [files], "validation": [files],
            "test": [files | {"name": "held_out", "box": box}]}
    if facts.resolution and facts.told_by != "the image":
        data["resolution"] = list(facts.resolution)
    if facts.unknown:
        data["ignore" if is_neurons else "background"] = list(facts.unknown)
    if task in ("mask", "synapses"):
        usual = facts.labelled * prod(patch)
        data |= {"reject_below": max(1, round(usual / 100)),
                 "reject_probability": 0.9 if facts.labelled < RARE else 0.5}
    table = {"name": name, "data": data, "augment": augment_of(facts), "model": net | {"in_channels": facts.channels},
             "train": train_of(kind_of(facts), STEPS),
             "infer": {"overlap": [0.25, 0.125, 0.125] if facts.is_flat else [0.25, 0.25, 0.25]}}
    table |= neurons(facts, patch) if is_neurons else mask(task, facts)
    table["model"]["out_channels"] = len(table["target"][0].get("offsets", [()]))
    return table, notes


def check_task(task: str, labels: str, facts: Facts) -> None:
    if task == "neurons" and facts.is_mask:
        raise InputError(f"{labels} is a mask of one value, and --task neurons needs an id for every neuron: take "
                         "--task membranes for the inside of cells, or --task mask for anything else")
    if task in ("membranes", "mask", "synapses") and facts.labelled > 0.999:
        raise InputError(f"every voxel of {labels} belongs to an object, so nothing tells background from it: --task "
                         "neurons separates objects that touch, and --task membranes needs membranes that are 0")


def doubts(task: str, facts: Facts) -> list[str]:
    """What the files do not say, and what may spoil the result."""
    notes = []
    if facts.resolution is None:
        notes.append(f"Neither file says its resolution, and sections differ {facts.depth:.1f} times as much as "
                     f"columns, so the volume is taken for a {kind_of(facts).name}. --resolution Z Y X (nm) says it.")
    elif facts.resolution[0] < 0.67 * max(facts.resolution[1:]):
        notes.append("Voxels are longer along y or x than along z. Sections should be stacked along z: turn the volume "
                     "if its thick axis is another one.")
    if kind_of(facts) is THIN:
        notes.append(f"The labels cover {facts.shape[0]} sections, and a block of tissue needs {FEW}, so they are "
                     "learned as a stack of sections.")
    if facts.sampled:
        notes.append("The labels are large: what is said of them holds for the box at their centre.")
    if task == "neurons" and facts.empty > UNLABELLED:
        notes.append(f"{facts.empty:.0%} of the voxels lie far from every label. " + (
            "As neurons touch without a gap, voxels without a label are not learned." if facts.touching > 0.5 else
            "They are learned as what separates neurons. If it is tissue that nobody labelled, name a mask of what is "
            "labelled in data.train and data.validation."))
    if task == "synapses" and not facts.is_mask:
        notes.append("The ids are taken for clefts. If odd and even ids are the two sides of a synapse, start from "
                     "configs/emr50/emr50_polarity_small.toml.")
    if task == "mask" and facts.touching > 0.1:
        notes.append("Objects touch each other, and a mask joins those that do: configs/tissue/mito_instances.toml "
                     "keeps them apart.")
    few = {"neurons": 20, "mask": 5, "synapses": 10}.get(task, 0)
    if facts.objects < few:
        notes.append(f"There are {facts.objects} objects, which is few to learn from and to be scored by: label more.")
    if task == "membranes" and facts.is_mask and facts.labelled < 0.5:
        notes.append("The smaller part of the voxels is labelled, so 1 is taken for membrane, and no cells are cut "
                     "out. Labels that are 1 inside of cells give cells.")
    return notes


def net_of(task: str, facts: Facts) -> dict[str, Any]:
    kind = kind_of(facts)
    sizes: dict[str, Any] = {"width": list(kind.width), "norm": "instance"}
    sizes |= {"down": [list(step) for step in kind.down]} if kind.down else {"depth_2d": kind.depth_2d}
    if task == "neurons" and kind in (SHEET, THIN):
        sizes["depth_2d"] = 3  # the coarser levels look across sections, which has to tell what continues
    fold = fold_of(task, facts)
    if fold > 1:
        sizes |= {"width": [32, 48, 64, 80], "fold": [fold if kind is BLOCK else 1, fold, fold]}
        sizes |= {"depth_2d": min(3, kind.depth_2d)} if kind.depth_2d else {}
    return {"name": "rsunet", "rsunet": sizes}


def base_patch(task: str, facts: Facts) -> Triple:
    """The patch of a net that does not fold; one that folds has as many blocks."""
    kind = kind_of(facts)
    return (kind.patch[0], 128, 128) if kind in (SHEET, THIN) and fold_of(task, facts) > 1 else kind.patch


def fold_of(task: str, facts: Facts) -> int:
    """How many voxels along y and x enter the net as one, so that a patch is wide enough."""
    if task not in ("mask", "synapses"):
        return 1
    kind = kind_of(facts)
    most = 2 if kind is BLOCK else 4
    pixel = (facts.resolution[1] + facts.resolution[2]) / 2 if facts.resolution else 0.0
    wanted = max(VIEW / pixel if pixel else 0.0, ACROSS * facts.wide)
    most = min(most, min(facts.shape if kind is BLOCK else facts.shape[1:]) // FOLDED)
    fold = 1
    while 2 * fold <= most and (kind.patch[1] if fold == 1 else min(kind.patch[1], 128) * fold) < wanted:
        fold *= 2
    return fold


def patch_of(task: str, facts: Facts, net: dict[str, Any]) -> Triple:
    """The patch of the kind, made smaller where the labels are, in multiples that the net takes."""
    fold = net["rsunet"].get("fold", [1, 1, 1])
    down = net["rsunet"].get("down", [[1, 2, 2]] * (len(net["rsunet"]["width"]) - 1))
    unit = [fold[axis] * prod(step[axis] for step in down) for axis in range(3)]
    z, y, x = (size * times for size, times in zip(base_patch(task, facts), fold))
    return patch_within(facts, (z, y, x), unit)


def patch_within(facts: Facts, wanted: Sequence[int], multiple: Sequence[int]) -> Triple:
    """A patch that is no larger than the labels, square as it is turned, and in multiples that the net takes."""
    there = [facts.shape[0], min(facts.shape[1:]), min(facts.shape[1:])]
    if kind_of(facts) is BLOCK:  # a cube, which is turned in every way
        there = [min(facts.shape)] * 3
    z, y, x = (max(step, min(size, length) // step * step) for size, length, step in zip(wanted, there, multiple))
    return z, y, x


def held_out_of(facts: Facts, patch: Triple) -> tuple[int, list[float], list[float], list[int]]:
    """Axis, part that validates, part to learn from, and the box of the image that is scored.

    The axis is the one along which most patches lie side by side; the part is an end of it that holds enough labels.
    """
    lengths = [length / size for length, size in zip(facts.shape, patch)]
    axes = sorted(range(3), key=lambda axis: -lengths[axis])
    choices = [(axis, end) for axis in axes for end in (1, 0)]
    axis, end = next((one for one in choices if _share(facts, *one) >= LEAST_TRUTH), (axes[0], 1))
    low, high = facts.region[axis]
    whole = facts.image[-3:][axis]
    cut = high - round(HELD_OUT * (high - low)) if end else low + round(HELD_OUT * (high - low))
    share = ceil(cut / whole * 10_000) / 10_000
    box = [edge for span in facts.region for edge in span]
    box[2 * axis:2 * axis + 2] = [int(whole * share), high] if end else [low, int(whole * share)]
    parts = [0.0, share], [share, 1.0]
    return (axis, parts[1], parts[0], box) if end else (axis, parts[0], parts[1], box)


def _share(facts: Facts, axis: int, end: int) -> float:
    """Share of the labelled voxels in one end of the sample."""
    profile = facts.profiles[axis]
    count = max(1, round(HELD_OUT * len(profile)))
    return float((profile[-count:] if end else profile[:count]).sum() / profile.sum())


def augment_of(facts: Facts) -> dict[str, Any]:
    common = {"flip": {"probability": [0.5, 0.5, 0.5]},
              "contrast": {"probability": 0.8, "gain": [0.7, 1.3], "bias": [-0.15, 0.15], "gamma": [0.6, 1.6]},
              "noise": {"probability": 0.3}, "blur": {"probability": 0.15, "full": 1.0}}
    if not facts.is_flat:
        common["blur"]["sections"] = 1
        return common | {"turn": {"probability": 1.0, "any_axis": True}, "elastic": {"probability": 0.3}}
    common["contrast"]["section_ratio"] = 0.7
    return common | {
        "turn": {"probability": 0.75},
        "scale": {"probability": 0.3, "factor": [0.85, 1.15], "together": True},
        "elastic": {"probability": 0.5, "flat": True, "depth": 0.0, "sigma": [8.0, 12.0], "magnitude": [40.0, 120.0]}}


def train_of(kind: Kind, steps: int) -> dict[str, Any]:
    """The loop of a run of so many steps."""
    tenth = max(1, steps // 10)
    return {"steps": steps, "batch": kind.batch, "compile": "off", "log_steps": 25, "preview_steps": 5 * tenth,
            "optimizer": {"lr": 2e-3}, "schedule": {"kind": "warmup_cosine", "warmup": min(100, tenth)},
            "ema": {"decay": 0.99 if steps < 1500 else 0.995, "warmup": min(200, tenth)},
            "save": {"steps": tenth, "minutes": 5.0}, "validate": {"steps": 2 * tenth, "crops": 8}}


def neurons(facts: Facts, patch: Triple) -> dict[str, Any]:
    kind = kind_of(facts)
    reach = [step for step in (1, 3, 9) if step == 1 or (step <= facts.wide and step < min(patch[1:]))]
    depth = [step for step in kind.steps if step == 1 or (step <= facts.wide and step < patch[0])]
    offsets = [[-step, 0, 0] for step in depth]
    offsets += [offset for step in reach for offset in ([0, -step, 0], [0, 0, -step])]
    offsets.sort(key=lambda offset: -sum(offset))  # the nearest come first, along z, y, x
    target: dict[str, Any] = {"kind": "affinity", "offsets": offsets}
    if facts.empty > UNLABELLED and facts.touching > 0.5:
        target["background"] = "ignore"
    labels: dict[str, Any] = {"split": True}
    if facts.is_flat and facts.touching > 0.5 and facts.thin >= GAP:
        labels["erosion"] = 1
    smooth = kind is BLOCK and facts.wide >= SMOOTH
    return {"labels": labels, "target": [target], "loss": {"terms": [{"kind": "bce"}]},
            "decode": {"kind": "affinities", "fragments": "faces-1" if smooth else "faces",
                       "statistic": "aff75_his256_all", "threshold": 0.4 if facts.is_flat else 0.1},
            "evaluate": {"scores": ["voi", "rand", "curve"]},
            "tune": {"objective": "voi", "confirm": 1, "space": {
                "statistic": ["aff75_his256_all"], "low": [1e-4], "high": [0.9999]}}}


def mask(task: str, facts: Facts) -> dict[str, Any]:
    bce: dict[str, Any] = {"kind": "bce"}
    if facts.labelled < RARE:
        bce["positive_weight"] = 3.0
    table: dict[str, Any] = {"target": [{"kind": "binary"}],
                             "loss": {"terms": [bce, {"kind": "dice", "weight": 0.5}]}}
    pieces = 26
    if task == "membranes":
        if facts.labelled < 0.5:
            return table | {"evaluate": {"scores": ["jaccard", "dice"]}}
        pieces, size, scores = 4 if facts.is_flat else 6, 50, ["membranes", "instances"]
    else:
        size = max(2, round(facts.size / 2))
        scores = ["jaccard", "dice", *(["clefts"] if task == "synapses" and facts.resolution else []), "instances"]
    evaluate: dict[str, Any] = {"scores": scores} | ({"instance_iou": 0.2} if task == "synapses" else {})
    if facts.is_mask or task == "membranes":
        evaluate["pieces"] = pieces
    return table | {"evaluate": evaluate, "decode": {
        "kind": "components", "connectivity": pieces, "threshold": 0.5, "remove_size": size}}
