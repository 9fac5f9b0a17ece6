"""python -m emcore import-config FILE.yaml: a config of PyTorch Connectomics as TOML, and what could not be carried.

Stages: [data.train], targets, augmentation, net, loss and loop come from `train` over `default`; prediction, decoding
and scores from `test` over `default`; the search from `tune`.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emcore import config
from emcore.errors import InputError
from emcore.files import write_text
from emcore.settings import Settings
from emcore.systems.pytc import learning, predicting, training
from emcore.systems.pytc.profiles import unknown_templates, with_profiles
from emcore.systems.pytc.tree import Tree, leaves
from emcore.systems.pytc.yaml_files import filled, merged, read_chain

STAGES = ("train", "test", "tune")
CREMI = {"background": [2**64 - 1], "ignore": [2**64 - 2]}  # in cleft files as the challenge gives them out


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m emcore import-config", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("yaml", help="the config; the files that its _base_ names are read from beside it")
    parser.add_argument("-o", "--out", help="TOML file to write; printed by default")
    options = parser.parse_args(arguments)
    settings, notes, left = import_config(options.yaml)
    remarks = [f"# changed: {note}" for note in notes] + [f"# not carried: {line}" for line in left]
    text = config.to_toml(settings, explained=True) + "\n" + "".join(f"{line}\n" for line in remarks)
    if options.out:
        write_text(options.out, text)
        print(f"{options.out}: {len(left)} settings not carried, told at its end")
    else:
        print(text, end="")
    for line in remarks:
        print(line.removeprefix("# "), file=sys.stderr)
    return 0


def import_config(path: str | Path) -> tuple[Settings, list[str], list[str]]:
    """Our settings, what was changed on the way, and every setting that could not be carried."""
    whole, missing = read_chain(Path(path))
    libraries = {name: value for name, value in whole.items() if name.endswith(("_profiles", "_templates"))}
    notes = [f"{name}, which _base_ names, is not there" for name in missing]
    name = str(whole.get("experiment_name") or Path(path).stem).replace("/", "_")  # it becomes a folder
    trees = {}
    for stage in STAGES:
        resolved, unknown, followed = with_profiles(_stage(whole, stage), libraries)
        trees[stage] = Tree(filled(resolved, resolved))
        trees[stage].taken.update(followed)
        unknown += unknown_templates(resolved, libraries)
        if unknown and missing:
            raise InputError(f"{path} chooses {unknown[0]}, which no file read here has, and {missing[0]}, which "
                             "_base_ names, is not there: import it where it lies in its checkout")
        notes += [f"{choice} is in none of the files that _base_ names" for choice in unknown]
    table = _table(trees, libraries, name, notes)
    try:
        settings = config.from_table(Settings, table)
    except InputError as error:
        raise InputError(f"{path} cannot be carried over: {error}") from None
    return settings, list(dict.fromkeys(notes)), _left(trees)


def _stage(whole: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """The settings of a stage: the file's own tables and those of `default`, under those of the stage."""
    plain = {key: value for key, value in whole.items() if key not in (*STAGES, "default", "experiment_name",
                                                                      "description", "shared")
             and not key.endswith(("_profiles", "_templates"))}
    tree = plain
    for part in ("default", stage):
        if isinstance(whole.get(part), Mapping):
            tree = merged(tree, whole[part])
    return tree


def _table(trees: Mapping[str, Tree], libraries: Mapping[str, Any], name: str, notes: list[str]) -> dict[str, Any]:
    train, test, tune = (trees[stage] for stage in STAGES)
    target, labels = learning.targets(train, notes)
    data = learning.data(train, notes)
    data["train"] = learning.volumes(train, "train", "train")
    data["validation"] = learning.volumes(train, "val", "val")
    data["test"] = learning.volumes(test, "test", "test")
    if not data["validation"] and "validation_part" in data:
        data["validation"] = data["train"]
    if len(data["test"]) == 1:
        data["test"][0].setdefault("name", "test_im")
    resolution = test.take(list, "data.test.resolution", "data.test_resolution")
    if resolution and data.setdefault("resolution", resolution) != resolution:
        notes.append(f"the resolution of the test volumes, {resolution}, is left to their files")
    probe = learning.data(Tree(test.values), [])
    if all(probe.get(key) == data.get(key) for key in ("normalise", "percentiles", "divide")):
        test.done("data.image_transform")  # says the same again
    offsets = [offset for item in target if item["kind"] == "affinity" for offset in item["offsets"]]
    infer = predicting.infer(test, probe.get("pad", [0] * 3), offsets, notes)
    if probe.get("pad") != data.get("pad"):
        test.done("data.data_transform.pad_size")
    search = predicting.tune(tune, notes)
    searched = learning.volumes(tune, "val", "val") if search else []
    if searched and [v["image"] for v in searched] != [v["image"] for v in data["test"]]:
        search["volumes"] = "validation"
        if data["validation"]:
            notes.append("the search runs on the validation volumes, not on tune.data.val")
        data["validation"] = data["validation"] or searched
    seed = train.take(int, "system.seed", default=42)
    table = {"name": name, "seed": seed, "data": data, "augment": learning.augment(train, notes), "labels": labels,
             "target": target, "loss": learning.loss(train, notes), "model": learning.model(train, notes),
             "train": training.train(train, notes), "infer": infer, "evaluate": predicting.evaluate(test, notes),
             "tune": search,
             "decode": predicting.decode(test, infer.get("select", []), offsets, libraries, notes)}
    listed = bool(train.parts("data.label_transform.targets"))
    if table["decode"].get("kind") == "polarity":
        predicting.make_polarity(table, listed, notes)
    elif not listed:
        data |= CREMI
    predicting.tell_logits(table, notes)
    return table


def _left(trees: Mapping[str, Tree]) -> list[str]:
    """`path = value` of everything that no stage's part of our config took."""
    taken = {(path, repr(value)) for tree in trees.values() for path, value in leaves(tree.values, "")
             if any(path == done or path.startswith(f"{done}.") for done in tree.taken)}
    lines: dict[str, None] = {}
    for stage, tree in trees.items():
        for path, value in leaves(tree.values, ""):
            if (path, repr(value)) not in taken:
                shared = any(dict(leaves(other.values, "")).get(path) == value
                             for name, other in trees.items() if name != stage)
                lines[f"{path if shared else f'{stage}.{path}'} = {_short(value)}"] = None
    return list(lines)


def _short(value: Any) -> str:
    text = " ".join(str(value).split())  # a comment must stay on its line
    return text if len(text) <= 100 else f"{text[:97]}..."
