"""python -m emcore new OUT.toml: a recipe for one's own volume and labels, chosen from what is in them."""

import argparse
import math
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from emcore import config
from emcore.cards import cards, checkpoint_file
from emcore.errors import InputError
from emcore.files import write_text
from emcore.memory import memory_there
from emcore.new.facts import Facts, look
from emcore.new.rules import TASKS, kind_of, patch_within, recipe, train_of
from emcore.progress import duration
from emcore.settings import Settings
from emcore.settings.model import RSUNetModel
from emcore.settings.target import AffinityTarget, BinaryTarget
from emcore.volumes.inspect import numbers, printable
from emcore.volumes.metadata import triple

QUESTIONS = {"image": "the image (path, or path:dataset)", "labels": "its labels (path, or path:dataset)",
             "task": f"what to find ({', '.join(TASKS)})"}
NEAR = 1.25  # times by which the resolution of weights may differ without a note


def main(arguments: Sequence[str]) -> int:
    options = parsed(arguments)
    out = Path(options.out)
    if out.suffix != ".toml":
        raise InputError(f"the file to write must end in .toml; got {out}")
    if out.exists() and not options.force:
        raise InputError(f"{out} exists already; choose another name, or add --force to replace it")
    if not 0 < options.minutes < math.inf:
        raise InputError(f"--minutes must be a number above 0; got {options.minutes:g}")
    image, labels, task = (asked(options, name) for name in QUESTIONS)
    if task not in TASKS:
        raise InputError(f"--task is one of {', '.join(TASKS)}; got {task}")
    resolution = triple(options.resolution, "--resolution", positive=True) if options.resolution else None
    print(f"looking at {printable(image)} and {printable(labels)}", flush=True)
    facts = look(image, labels, resolution)
    table, notes = recipe(out.stem, image, labels, task, facts)
    settings = config.from_table(Settings, table)
    if options.start:
        settings, more = started(settings, options.start, task, facts)
        notes += more
    settings.check()
    print("\n".join(about(facts)), flush=True)
    settings, costs = costed(settings, facts, options.minutes)
    lines = [f"{task.capitalize()} of {image}, learned from {labels}.",
             "Written by python -m emcore new; change it as you like.", *about(facts), *costs, *notes]
    head = "".join(textwrap.fill(printable(line), 118, initial_indent="# ", subsequent_indent="#   ") + "\n"
                   for line in lines)
    write_text(out, head + config.short_toml(settings, remarks(settings, task, facts)))
    print("\n".join(costs + [f"note: {note}" for note in notes]))
    print(f"{out} is written. Next:")
    print("\n".join(f"  python {script}.py --cfg {out}" for script in ("train", "infer", "evaluate")))
    return 0


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m emcore new", description=(
            "Write a recipe for your own volume and labels, chosen from what is in them (docs/tutorials/own_data.md). "
            "What is not given is asked for, on a terminal."),
        epilog="Example: python -m emcore new mine.toml --image em.h5:raw --labels em.h5:labels --task neurons")
    parser.add_argument("out", metavar="OUT.toml", help="the file to write")
    parser.add_argument("--image", help="path, path:dataset or address of the image")
    parser.add_argument("--labels", help="the same of its labels; smaller ones say by their offset where they lie")
    parser.add_argument("--task", metavar="TASK", help=f"what to find: {', '.join(TASKS)}")
    parser.add_argument("--from", dest="start", metavar="WEIGHTS", help="start from these weights, with their net: a "
                        "checkpoint, or a name that python -m emcore models lists")
    parser.add_argument("--resolution", nargs=3, type=float, metavar=("Z", "Y", "X"),
                        help="nm per voxel, where the files say none")
    parser.add_argument("--minutes", type=float, default=30.0, help="how long the training takes here (default 30)")
    parser.add_argument("--force", action="store_true", help="replace OUT.toml")
    return parser.parse_args(arguments)


def asked(options: argparse.Namespace, name: str) -> str:
    """A flag, or what the user answers on a terminal."""
    given = getattr(options, name)
    if given:
        return given
    if not sys.stdin.isatty():
        raise InputError(f"--{name} is missing: name {QUESTIONS[name]}")
    try:
        answer = input(f"{QUESTIONS[name]}: ").strip()
    except EOFError:
        answer = ""
        print()
    if not answer:
        raise InputError(f"nothing was answered for --{name}: name {QUESTIONS[name]}")
    return answer


def started(settings: Settings, given: str, task: str, facts: Facts) -> tuple[Settings, list[str]]:
    """The settings with the net of trained weights, and what does not fit together."""
    from emcore.engine import checkpoint

    path = checkpoint_file(given)
    content = checkpoint.read(path)
    if not isinstance(content.get("config"), Mapping):
        raise InputError(f"{given} does not say which net it belongs to: name a checkpoint of emcore, or weights that "
                         "python -m emcore models lists")
    theirs = config.from_table(Settings, content["config"], str(path))
    wanted = AffinityTarget if task == "neurons" else BinaryTarget
    if [type(target) for target in theirs.target] != [wanted]:
        raise InputError(f"{given} predicts {' and '.join(target.kind for target in theirs.target)}, and --task {task} "
                         f"needs {wanted.kind}: leave --from out, or name other weights")
    if not isinstance(theirs.model, RSUNetModel):
        raise InputError(f"{given} belongs to a net of model.name = {theirs.model.name}, and a recipe written here has "
                         "an rsunet: leave --from out, or name other weights")
    if theirs.model.in_channels != facts.channels:
        raise InputError(f"{given} takes images of {theirs.model.in_channels} channels, and this one has "
                         f"{facts.channels}: leave --from out")
    notes, card = [], cards().get(given)
    if card is None:
        notes.append(f"{given} has no card, so nobody knows here of which resolution it learned.")
    elif facts.resolution and not all(1 / NEAR < one / other < NEAR for one, other in
                                      zip(facts.resolution, card.resolution)):
        notes.append(f"{given} learned at {numbers(card.resolution)} nm (z, y, x), and this volume has "
                     f"{numbers(facts.resolution)} nm: what it knows may not help.")
    patch = patch_within(facts, theirs.data.patch, theirs.model.multiple)
    if any(size > there for size, there in zip(patch, facts.shape)):
        raise InputError(f"{given} takes patches of at least {numbers(patch)} voxels (z, y, x), and the labels cover "
                         f"{numbers(facts.shape)}: leave --from out, or label more")
    data = replace(settings.data, patch=patch, normalise=theirs.data.normalise, percentiles=theirs.data.percentiles,
                   normalise_by=theirs.data.normalise_by, divide=theirs.data.divide)
    train = replace(settings.train, start_from=given, optimizer=replace(settings.train.optimizer, lr=1e-3))
    return replace(settings, data=data, target=theirs.target, model=theirs.model, train=train), notes


def costed(settings: Settings, facts: Facts, minutes: float) -> tuple[Settings, list[str]]:
    """The settings that fit this machine, with as many steps as the minutes allow, and what they cost in words."""
    from emcore.new import costs

    kind, volume = kind_of(facts), facts.image[-3:]
    settings = costs.fitting(settings)
    if facts.bytes > memory_there() // 4:
        settings = replace(settings, data=replace(settings.data, storage="lazy"))
    window = costs.window_of(settings, kind.windows, volume)
    settings = replace(settings, infer=replace(settings.infer, window=window))
    found = costs.measure(settings)
    steps = costs.steps_in(minutes, found.step)
    loop = train_of(kind, steps)
    train = config.from_table(type(settings.train), loop)
    train = replace(train, batch=settings.train.batch, start_from=settings.train.start_from,
                    optimizer=settings.train.optimizer)
    data = replace(settings.data, workers=0) if found.device == "cpu" else settings.data
    settings = replace(settings, train=train, data=data)
    box = settings.data.test[0].box
    held_out = tuple(box[2 * axis + 1] - box[2 * axis] for axis in range(3))
    parts = [("the held-out part", held_out), ("the whole image", volume)]
    here = [f"{name} {duration(found.voxel * costs.computed(settings, shape))}" for name, shape in parts]
    work = 3 * found.operations * steps * train.batch * math.prod(settings.data.patch)
    there = found.operations * costs.computed(settings, volume)
    memory = [costs.bytes_of(settings, voxels, learning) / 2**30 for voxels, learning in (
        (math.prod(settings.data.patch) * train.batch, True), (math.prod(window), False))]
    return settings, [
        f"Here ({found.device}) a step takes {found.step:.2f} s, so {steps} steps take {duration(steps * found.step)}. "
        f"The net predicts {' and '.join(here)}; decoding comes on top.",
        f"The net needs about {memory[0]:.1f} GiB of memory in training and {memory[1]:.1f} GiB in prediction, and "
        f"{memory_there() / 2**30:.0f} GiB are free.",
        f"On one GPU, by an estimate, training takes {duration(max(steps * costs.LEAST, work / costs.GPU))} and "
        f"prediction of the whole image {duration(there / costs.GPU)}."]


def about(facts: Facts) -> list[str]:
    """What is in the files, in sentences."""
    kind = kind_of(facts)
    told = f"{numbers(facts.resolution)} nm (z, y, x), as {facts.told_by} says" if facts.resolution else "unknown size"
    pixel = (facts.resolution[1] + facts.resolution[2]) / 2 if facts.resolution else None

    def width(pixels: float) -> str:
        return f"{pixels:.0f} pixels" + (f" ({pixels * pixel:.0f} nm)" if pixel else "")

    missing = "" if facts.labelled > 0.9995 else (
        f"; {1 - facts.labelled:.1%} of the voxels have no label, and {facts.empty:.1%} lie far from every label")
    return [f"The image has {numbers(facts.image)} voxels of {told}, a {kind.name}; the labels cover "
            f"{numbers(facts.shape)} of them.",
            f"The labels hold {facts.objects} objects{' (pieces of a mask)' if facts.is_mask else ''}{missing}. The "
            f"usual one is {width(facts.wide)} wide, and thin ones are {width(facts.thin)}."]


def remarks(settings: Settings, task: str, facts: Facts) -> dict[str, str]:
    """A comment for each table that is not plain."""
    data, rows = settings.data, {}
    low, high = data.validation_part
    rows["data"] = (f"The part from {low:.0%} to {high:.0%} along {'zyx'[data.split_axis]} is held out: it validates, "
                    "and is predicted and scored.")
    rows["augment.turn"] = "Patches look different every time: turned, bent, of other contrast, noisy and blurred."
    if task == "neurons":
        rows["target"] = "Whether voxels belong together: with the nearest neighbours, and with some farther away."
        rows["decode"] = ("The threshold is a guess until evaluate.py --tune has found that of your weights on the "
                          "held-out part.")
        rows["tune"] = "What evaluate.py --tune tries: every threshold."
    else:
        rows["target"] = "The mask of the labels."
        rows["decode"] = "Pieces of the mask; half of a small object of the labels is the least that is kept."
    rows["model.rsunet"] = ("Blocks of pixels enter the net as one (fold), so that a patch shows an object and what "
                            "surrounds it." if math.prod(settings.model.rsunet.fold) > 1
                            else "A small net: its levels halve the voxels along "
                            + ("z, y and x." if not facts.is_flat else "y and x, as sections are thick or few."))
    rows["train"] = "As many steps as the minutes allow; more are better: add train.steps=N and name=ANOTHER."
    rows["infer"] = "The largest window that memory allows without doubt."
    return rows
