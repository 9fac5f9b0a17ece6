"""How a config of PyTorch Connectomics chooses profiles and templates, which stand in the files of its _base_.

A profile lies under what the config says itself.
"""

from collections.abc import Mapping
from typing import Any

from emcore.systems.pytc.yaml_files import look_up, merged

# where a profile is chosen, in which library, and the table that it lies under (None: the parts it names itself)
SELECTORS = (
    ("pipeline_profile", "pipeline_profiles", ""), ("model.arch.profile", "arch_profiles", "model"),
    ("model.loss.profile", "loss_profiles", "model.loss"),
    ("data.label_transform.profile", "label_profiles", "data.label_transform"),
    ("data.augmentation.profile", "augmentation_profiles", "data.augmentation"),
    ("data.dataloader.profile", "dataloader_profiles", "data.dataloader"),
    ("optimization.profile", "optimizer_profiles", "optimization"), ("system.profile", "system_profiles", "system"),
    ("inference.test_time_augmentation.activation_profile", "activation_profiles",
     "inference.test_time_augmentation.channel_activations"),
    ("inference.decoding_profile", "decoding_profiles", ""), ("profile", "tune_profiles", ""))
DECODING = ("decoding.steps", "decoding", "inference.decoding")  # where decoding steps are listed
LISTS = {"loss_profiles": "losses"}  # libraries whose profiles were once bare lists


def with_profiles(tree: Mapping[str, Any], libraries: Mapping[str, Any]) -> tuple[dict[str, Any], list[str], set[str]]:
    """The tree over its profiles, the profiles that are unknown, and the selectors that were followed."""
    unknown, followed = [], set()
    for selector, library, place in SELECTORS:
        name = look_up(tree, selector)
        if not isinstance(name, str):
            continue
        profile = look_up(libraries, library)
        profile = profile.get(name) if isinstance(profile, Mapping) else None
        if profile is None:
            unknown.append(f"{selector} = {name}")
            continue
        if isinstance(profile, list) and library in LISTS:
            profile = {LISTS[library]: profile}
        if not isinstance(profile, Mapping) and library != "activation_profiles":
            unknown.append(f"{selector} = {name}")
            continue
        if library == "arch_profiles" and "type" in profile:  # once without the table arch
            profile = {"arch": {"type": profile["type"]}, **{k: v for k, v in profile.items() if k != "type"}}
        if library == "decoding_profiles" and "decoding" in profile:
            profile = {"decoding": {"steps": profile["decoding"]}}
        for part in reversed(place.split(".") if place else []):
            profile = {part: profile}
        followed.add(selector)
        tree = merged(profile, tree)
    return dict(tree), unknown, followed


def with_template(step: Mapping[str, Any], libraries: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The decoding steps that a `template:` stands for, its kwargs under those of the step; None if it is unknown."""
    name = step.get("template")
    if not isinstance(name, str):
        return [dict(step)]
    found = look_up(libraries, "decoding_templates") or {}
    template = found.get(name) if isinstance(found, Mapping) else None
    steps = look_up(template, "steps")
    if not isinstance(steps, list) or not all(isinstance(item, Mapping) for item in steps):
        return None
    own = {key: value for key, value in step.items() if key != "template"}
    return [merged(item, own) for item in steps]


def unknown_templates(tree: Mapping[str, Any], libraries: Mapping[str, Any]) -> list[str]:
    """The templates of decoding steps that no library has."""
    steps = [step for place in DECODING if isinstance(found := look_up(tree, place), list) for step in found
             if isinstance(step, Mapping)]
    return [f"template = {step['template']}" for step in steps if with_template(step, libraries) is None]
