"""The named profiles of PyTorch Connectomics, for configs that come without its files, and how profiles are chosen.

A profile lies under what the config says itself. Files beside the config go before the tables here.
"""

from collections.abc import Mapping
from typing import Any

from emcore.systems.pytc.yaml_files import look_up, merged

ON = {"enabled": True}
SQUARE = {"flip": ON | {"prob": 0.5}, "rotate": ON | {"prob": 0.5}}


def _intensity(noise: float, deviation: float, shift: float, offset: float, contrast: float, span: list[float]) -> dict:
    return ON | {"gaussian_noise_prob": noise, "gaussian_noise_std": deviation, "shift_intensity_prob": shift,
                 "shift_intensity_offset": offset, "contrast_prob": contrast, "contrast_range": span}


def _term(function: str, weight: float = 1.0, channels: str | None = None, **kwargs: Any) -> dict:
    slices = {"pred_slice": channels, "target_slice": channels} if channels else {}
    return {"function": function, "weight": weight, "kwargs": kwargs, **slices}


def _affinities(*offsets: str) -> dict:
    return {"name": "affinity", "kwargs": {"offsets": list(offsets), "affinity_mode": "deepem"}}


def _nearest_and(*far: int) -> list[str]:
    return [offset for n in (1, *far) for offset in (f"0-0-{n}", f"0-{n}-0", f"{n}-0-0")]


def _affinity_pipeline(channels: int, loss: str, label: str, activation: str, **inference: Any) -> dict:
    views = {"ensemble_mode": "min", "activation_profile": activation}
    return {"model": {"out_channels": channels, "loss": {"profile": loss}},
            "data": {"label_transform": {"profile": label}},
            "decoding": {"steps": [{"template": "decoding_waterz"}]},
            "inference": {"test_time_augmentation": views, **inference}}


def _optimization(scheduler: Mapping[str, Any]) -> dict:
    return {"optimizer": {"name": "AdamW", "lr": 3e-4, "weight_decay": 0.01}, "scheduler": dict(scheduler)}


DICE = {"sigmoid": True, "smooth_nr": 1e-5, "smooth_dr": 1e-5}
NEURON = SQUARE | {
    "defect_mutex": True, "intensity": _intensity(0.3, 0.05, 0.7, 0.2, 0.7, [0.5, 1.5]),
    "slice_shift_z": ON | {"prob": 1.0, "displacement": 17},
    "slice_drop_z": ON | {"prob": 1.0, "num_sections": [0, 5]},
    "missing_parts": ON | {"prob": 0.2, "hole_range": [0.1, 0.25]}}
BUILT_IN: dict[str, dict[str, Any]] = {
    "arch_profiles": {
        "rsunet": {"arch": {"type": "rsunet"}, "rsunet": {
            "width": [18, 36, 48, 64, 80], "norm": "group", "activation": "elu", "num_groups": 4,
            "down_factors": [[1, 2, 2]] * 4, "depth_2d": 1, "kernel_2d": [1, 3, 3]}},
        **{f"mednext_{size.lower()}": {"arch": {"type": "mednext"}, "mednext": {"size": size, "kernel_size": 3}}
           for size in "SBML"}},
    "pipeline_profiles": {
        "binary": {"model": {"out_channels": 1, "loss": {"profile": "loss_binary"}},
                   "inference": {"test_time_augmentation": {"activation_profile": "act_binary"}}},
        "bcd": {"model": {"out_channels": 3, "loss": {"profile": "loss_bcd"}},
                "data": {"label_transform": {"profile": "label_bcd"}},
                "decoding": {"steps": [{"template": "decoding_bcd"}]},
                "inference": {"test_time_augmentation": {"activation_profile": "act_bcd"}}},
        "aff9": _affinity_pipeline(9, "loss_per_channel", "label_affinity_9", "act_binary"),
        "aff12": _affinity_pipeline(12, "loss_per_channel", "label_aff12", "act_binary", select_channel=[0, 1, 2]),
        "aff9_sdt": _affinity_pipeline(10, "loss_bd", "label_aff9_sdt", "act_bd")},
    "label_profiles": {
        "label_bcd": {"targets": [{"name": "binary"}, {"name": "instance_boundary", "kwargs": {
            "thickness": 1, "edge_mode": "all", "mode": "2d"}}, {"name": "instance_edt", "kwargs": {"mode": "2d"}}]},
        "label_affinity_9": {"erosion": 1, "targets": [_affinities(*_nearest_and(5, 11))]},
        "label_aff9_sdt": {"erosion": 1, "targets": [
            _affinities(*_nearest_and(5, 17)),
            {"name": "skeleton_aware_edt", "kwargs": {"alpha": 0.8, "bg_value": -1.0}}]},
        "label_aff12": {"erosion": 1, "targets": [_affinities(
            *_nearest_and(), "2-0-0", "3-0-0", "4-0-0", "0-0-3", "0-0-9", "0-0-27", "0-3-0", "0-9-0", "0-27-0")]}},
    "loss_profiles": {
        "loss_binary": {"losses": [_term("WeightedBCEWithLogitsLoss"), _term("DiceLoss", **DICE)]},
        "loss_bcd": {"losses": [
            _term("WeightedBCEWithLogitsLoss", 1.0, "0:1"), _term("DiceLoss", 0.5, "0:1", **DICE),
            _term("WeightedBCEWithLogitsLoss", 1.0, "1:2") | {"pos_weight": "auto"},
            _term("DiceLoss", 0.5, "1:2", **DICE), _term("WeightedMSELoss", 2.0, "2:3", tanh=True)]},
        "loss_per_channel": {"losses": [_term("PerChannelBCEWithLogitsLoss", auto_pos_weight=True)]},
        "loss_bd": {"losses": [_term("PerChannelBCEWithLogitsLoss", 1.0, "0:-1", auto_pos_weight=True),
                               _term("SmoothL1Loss", 1.0, "-1:", tanh=True)],
                    "loss_balancing": {"strategy": "uncertainty"}}},
    "augmentation_profiles": {
        "aug_light": SQUARE | {"intensity": _intensity(0.3, 0.05, 0.3, 0.1, 0.3, [0.9, 1.1])},
        "aug_standard": SQUARE | {
            "intensity": _intensity(0.5, 0.1, 0.5, 0.1, 0.5, [0.9, 1.1]),
            "slice_shift_z": ON | {"prob": 0.4, "displacement": 10},
            "slice_drop_z": ON | {"prob": 0.3, "num_sections": 2}},
        "aug_strong": SQUARE | {
            "affine": ON | {"prob": 0.3, "rotate_range": [0.1] * 3, "scale_range": [0.05] * 3,
                            "shear_range": [0.05] * 3},
            "elastic": ON | {"prob": 0.3, "sigma_range": [5.0, 8.0], "magnitude_range": [50.0, 150.0]},
            "intensity": _intensity(0.5, 0.1, 0.7, 0.2, 0.7, [0.7, 1.4]),
            "slice_shift_z": ON | {"prob": 0.5, "displacement": 16, "rotate_ratio": 0.3},
            "slice_drop_z": ON | {"prob": 0.4, "num_sections": 3},
            "motion_blur": ON | {"prob": 0.3, "sections": [1, 3], "kernel_size": 11},
            "missing_parts": ON | {"prob": 0.2, "hole_range": [0.1, 0.25]},
            "cut_noise": ON | {"prob": 0.3, "length_ratio": [0.1, 0.25], "noise_scale": [0.05, 0.15]}},
        "aug_em_neuron": NEURON | {
            "elastic": ON | {"prob": 0.7, "sigma_range": [4.0, 8.0], "magnitude_range": [8.0, 16.0]},
            "motion_blur": ON | {"prob": 1.0, "sections": [0, 5], "kernel_size": 11}},
        "aug_em_neuron_fast": NEURON,
        "aug_instance": SQUARE | {
            "intensity": _intensity(0.5, 0.1, 0.5, 0.1, 0.5, [0.9, 1.1]),
            "slice_shift_z": ON | {"prob": 0.4, "displacement": 16, "rotate_ratio": 0.5},
            "slice_drop_z": ON | {"prob": 0.3, "num_sections": 1},
            "copy_paste": ON | {"prob": 0.6, "max_obj_ratio": 0.7}, "mixup": ON | {"prob": 0.3}}},
    "activation_profiles": {
        "act_binary": [{"channels": ":", "activation": "sigmoid"}],
        "act_bcd": [{"channels": "0:2", "activation": "sigmoid"}, {"channels": "2:3", "activation": "tanh"}],
        "act_bd": [{"channels": "0:-1", "activation": "sigmoid"}, {"channels": "-1:", "activation": "tanh"}]},
    "dataloader_profiles": {"cached": {"use_preloaded_cache_train": True, "use_preloaded_cache_val": True,
                                       "persistent_workers": True}},
    "system_profiles": {"all-gpu-cpu": {"num_gpus": -1, "num_workers": -1}},
    "optimizer_profiles": {
        "warmup_cosine_lr": _optimization({"name": "WarmupCosineLR", "interval": "epoch", "warmup_epochs": 3,
                                           "warmup_start_lr": 1e-5, "min_lr": 1e-6}),
        "cosine_annealing_lr": _optimization({"name": "CosineAnnealingLR", "interval": "epoch", "min_lr": 1e-6,
                                              "params": {"t_max": 200}}),
        "reduce_on_plateau": _optimization({"name": "ReduceLROnPlateau", "interval": "epoch", "factor": 0.2,
                                            "patience": 10, "min_lr": 1e-6})},
    "tune_profiles": {"tune_waterz": {"parameter_space": {"decoding": {"parameters": {
        "merge_function": {"type": "categorical", "choices": [f"aff{q}_his256" for q in (85, 75, 50)]},
        "thresholds": {"type": "float", "range": [0.1, 0.9], "step": 0.05},
        "aff_threshold_low": {"type": "float", "range": [0.001, 0.3], "step": 0.01},
        "aff_threshold_high": {"type": "float", "range": [0.8, 0.9999], "step": 0.01}}}}}},
    "decoding_templates": {
        "decoding_waterz": {"steps": [{"name": "decode_waterz", "kwargs": {
            "thresholds": 0.4, "merge_function": "aff85_his256", "aff_threshold": [0.001, 0.999],
            "channel_order": "xyz", "dust_merge": True, "dust_merge_size": 100, "dust_merge_affinity": 0.0,
            "dust_remove_size": 50}}]},
        "decoding_bcd": {"steps": [{"name": "decode_instance_binary_contour_distance", "kwargs": {
            "binary_threshold": [0.9, 0.85], "contour_threshold": [0.8, 1.1], "distance_threshold": [0.5, -0.5],
            "min_instance_size": 30, "min_seed_size": 5}}]}},
}
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
        profile = BUILT_IN.get(library, {}).get(name) if profile is None else profile
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
    template = template or BUILT_IN["decoding_templates"].get(name)
    steps = look_up(template, "steps")
    if not isinstance(steps, list) or not all(isinstance(item, Mapping) for item in steps):
        return None
    own = {key: value for key, value in step.items() if key != "template"}
    return [merged(item, own) for item in steps]
