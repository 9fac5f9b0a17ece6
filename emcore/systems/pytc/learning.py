"""PyTorch Connectomics' data, label, augmentation, model and loss settings as tables of ours."""

import math
from typing import Any

from emcore.errors import InputError
from emcore.systems.pytc.tree import Tree, pair, whole_numbers

Table = dict[str, Any]
LOSSES = {"WeightedBCEWithLogitsLoss": "bce", "BCEWithLogitsLoss": "bce", "DiceLoss": "dice",
          "PerChannelBCEWithLogitsLoss": "per_channel_bce", "WeightedMSELoss": "mse", "MSELoss": "mse",
          "WeightedMAELoss": "mae", "L1Loss": "mae", "SmoothL1Loss": "smooth_l1", "FocalLoss": "focal",
          "CrossEntropyLoss": "weighted_ce", "WeightedCE": "weighted_ce"}
BALANCED = ("WeightedMSELoss", "WeightedMAELoss", "SmoothL1Loss")  # classes weigh alike where no weight is given
EDGES = {"all": "all", "seg-all": "foreground", "seg-no-bg": "contacts"}
SIMPLE_TARGETS = {"binary": "binary", "skeleton_aware_edt": "skeleton_distance", "semantic_edt": "foreground_distance",
                  "signed_distance": "signed_distance", "instance_edt": "instance_distance", "lsd": "lsd",
                  "instance_boundary": "boundary", "polarity": "polarity", "seg_to_polarity": "polarity"}
# step -> (table there, table here, {our key: (its name there, what its value is by default)})
STEPS: tuple[tuple[str, str, dict[str, tuple[str, Any]]], ...] = (
    ("elastic", "elastic", {"sigma": ("sigma_range", [3.0, 6.0]), "magnitude": ("magnitude_range", [10.0, 20.0])}),
    ("misalignment", "misalignment", {"displacement": ("displacement", 16), "rotate_ratio": ("rotate_ratio", 0.0)}),
    ("slice_shift_z", "misalignment", {"displacement": ("displacement", 16), "rotate_ratio": ("rotate_ratio", 0.0)}),
    *((name, "missing_section", {
        "sections": ("num_sections", 2), "full": ("full_section_prob", 0.5), "part": ("partial_ratio_range", None),
        "fill": ("fill_value_range", None)}) for name in ("missing_section", "slice_drop_z")),
    ("motion_blur", "blur", {
        "sections": ("sections", [1, 3]), "kernel": ("kernel_size", 9), "sigma": ("sigma_range", None),
        "full": ("full_section_prob", 0.5), "part": ("partial_ratio_range", None)}),
    ("lost_section", "lost_section", {"sections": ("num_sections", 1)}),
    ("missing_parts", "missing_part", {"size": ("hole_range", [0.1, 0.25])}),
    ("cut_noise", "cut_noise", {"size": ("length_ratio", None), "scale": ("noise_scale", None)}),
    ("cut_blur", "cut_blur", {"size": ("length_ratio", None), "factor": ("down_ratio_range", None)}),
    ("mixup", "mixup", {"share": ("alpha_range", None)}), ("copy_paste", "copy_paste", {"largest": ("max_obj_ratio",
                                                                                                  0.7)}))
WHOLE = ("displacement", "kernel", "sections")
SINGLE = ("rotate_ratio", "full", "largest")
MUTEX = ("misalignment", "missing_section", "lost_section", "blur", "missing_part")


def volumes(tree: Tree, which: str, old: str) -> list[Table]:
    """The volumes of data.<which>, from lists of files side by side; `old` is the prefix of 2025."""
    part = tree.part(f"data.{which}")
    folder = "".join(_folder(part.take(str, name, default="")) for name in ("root_path", "path"))
    columns = {role: _files(part.take(object, name), folder, part.path(name))
               or _files(tree.take(object, f"data.{old}_{name}"), folder, name)
               for role, name in (("image", "image"), ("label", "label"), ("mask", "mask"))}
    if part.take(str, "label_aux_type") == "skeleton":
        columns["skeleton"] = _files(part.take(object, "label_aux"), folder, "label_aux")
    names = _files(part.take(object, "name"), "", "name")
    found = []
    for number, image in enumerate(columns["image"]):
        volume = {"image": image} | ({"name": names[number].replace("/", "_")} if number < len(names) else {})
        for role in columns.keys() - {"image"}:
            if columns[role]:
                if len(columns[role]) != len(columns["image"]):
                    raise InputError(f"{part.where} has {len(columns['image'])} images and {len(columns[role])} files "
                                     f"as {role}")
                volume[role] = columns[role][number]
        found.append(volume)
    box = part.take(list, "crop")
    return [volume | ({"box": box} if box else {}) for volume in found]


def _folder(path: str) -> str:
    return path if not path or path.endswith("/") else f"{path}/"


def _files(value: Any, folder: str, where: str) -> list[str]:
    files = [value] if isinstance(value, str) else value or []
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        raise InputError(f"{where} must name files; got {str(value)[:60]!r}")
    return [folder + file for file in files]


def data(tree: Tree, notes: list[str]) -> Table:
    """[data] without its volumes."""
    out: Table = {"workers": 8}
    patch = tree.take(list, "data.dataloader.patch_size", "data.patch_size", "model.output_size", "model.input_size")
    if patch:
        out["patch"] = patch
    pad = tree.take(list, "data.data_transform.pad_size", "data.pad_size")
    if pad:
        out["pad"] = whole_numbers(pad, tree.path("data.data_transform.pad_size"))
    tree.same({"data.data_transform.pad_mode": "reflect", "data.pad_mode": "reflect", "model.input_size": patch,
               "data.dataloader.persistent_workers": True, "data.split_pad_val": True})
    cached = [tree.take(bool, f"data.dataloader.use_preloaded_cache_{which}", "data.use_preloaded_cache")
              for which in ("train", "val")]
    if False in cached:
        out["storage"] = "lazy"
    image = tree.part("data.image_transform")
    kind = image.take(str, "normalize", default="0-1")
    if kind.startswith("divide-") and kind[7:].replace(".", "", 1).isdigit():
        out |= {"normalise": "divide", "divide": float(kind[7:])}
    elif kind in ("0-1", "normal", "none"):
        out["normalise"] = {"0-1": "range", "normal": "score", "none": "none"}[kind]
    else:
        notes.append(f"data.image_transform.normalize = {kind} is not known; intensities are brought to 0..1")
    low, high = image.take(float, "clip_percentile_low", default=0.0), image.take(float, "clip_percentile_high",
                                                                                  default=1.0)
    out["percentiles"] = [100 * low, 100 * high]
    for name, key in (("size_thres", "reject_below"), ("p", "reject_probability")):
        value = tree.take(int if name == "size_thres" else float, f"data.dataloader.reject_sampling.{name}",
                          f"data.reject_sampling.{name}")
        if value is not None:
            out[key] = value
    if tree.take(bool, "data.split_enabled"):
        out |= {key: value for key, kind, name in (
            ("split_axis", int, "axis"), ("train_part", list, "train_range"), ("validation_part", list, "val_range"))
                if (value := tree.take(kind, f"data.split_{name}")) is not None}
    resolution = tree.take(list, "data.train.resolution", "data.label_transform.resolution", "data.train_resolution")
    if resolution:
        out["resolution"] = resolution
    workers = tree.take(int, "system.num_workers", "system.training.num_workers")
    if workers is not None and workers >= 0:
        out["workers"] = workers
    return out


def augment(tree: Tree, notes: list[str]) -> Table:
    """[augment]: only what is enabled."""
    part, out = tree.part("data.augmentation"), {}
    part.take(str, "preset")
    for name in ("flip", "rotate"):
        step = _enabled(part, name)
        if step is not None:
            chance = step.take(float, "prob", default=0.5)
            if name == "flip":
                axes = step.take(list, "spatial_axis", default=[0, 1, 2])
                out["flip"] = {"probability": [chance if axis in axes else 0.0 for axis in range(3)]}
            else:
                out["turn"] = {"probability": chance}
                step.same({"max_angle": 90.0, "spatial_axes": [1, 2]})
    step = _enabled(part, "intensity")
    if step is not None:
        for prefix, value, key, ours, chance, default in (
                ("gaussian_noise", "std", "noise", "deviation", 0.5, 0.1),
                ("shift_intensity", "offset", "shift", "offset", 0.5, 0.1),
                ("contrast", "range", "gamma", "range", 0.5, [0.9, 1.1])):
            found = step.take(object, f"{prefix}_{value}", default=default)
            out[key] = {"probability": step.take(float, f"{prefix}_prob", default=chance),
                        ours: pair(found, step.path(prefix)) if value == "range" else found}
    for name, key, fields in STEPS:
        step = _enabled(part, name)
        if step is None:
            continue
        table = {"probability": step.take(float, "prob", default=0.5)}
        for ours, (theirs, default) in fields.items():
            value = step.take(object, theirs, default=default)
            if value is not None:
                table[ours] = value if ours in WHOLE or ours in SINGLE else pair(value, step.path(theirs))
        if name == "lost_section":
            by = step.take(str, "mode", default="random_neighbor")
            table["by"] = {"random_neighbor": "random", "interpolate": "mean"}.get(by, by)
        out[key] = table
        if key == "misalignment":
            notes.append(f"{step.where}: there the image moves and the labels stay; here both move "
                         "(augment.misalignment.labels = false is as there)")
    step = _enabled(part, "affine")
    if step is not None:
        chance = step.take(float, "prob", default=0.5)
        # z, y, x; a turn about z alone, and y and x alike, is what is here
        turn, scale, shear = (pair(step.take(list, f"{name}_range", default=[0.0] * 3)[:2], step.path(f"{name}_range"))
                              for name in ("rotate", "scale", "shear"))
        degrees = math.degrees(turn[0])
        out |= {"rotate": {"probability": chance, "degrees": [-degrees, degrees]},
                "scale": {"probability": chance, "factor": [1 - scale[1], 1 + scale[1]]},
                "shear": {"probability": chance, "amount": shear[1]}}
    if part.take(bool, "defect_mutex"):
        out["exclusive"] = [key for key in MUTEX if key in out]
    return out


def _enabled(part: Tree, name: str) -> Tree | None:
    """The table of a step that is on; what a step that is off says does not matter."""
    step = part.part(name)
    if not step.values.get("enabled"):
        step.done()
        return None
    step.take(bool, "enabled")
    return step


def model(tree: Tree, notes: list[str]) -> Table:
    """[model]."""
    part = tree.part("model")
    out: Table = {"in_channels": part.take(int, "in_channels", default=1),
                  "out_channels": part.take(int, "out_channels", default=1),
                  "deep_supervision": part.take(bool, "loss.deep_supervision", "deep_supervision", default=False)}
    kind = part.values.get("arch", {}).get("type") if isinstance(part.values.get("arch"), dict) else None
    if kind not in (None, "rsunet", "rsunet_iso", "mednext"):
        notes.append(f"the net {kind} is not here; the config says rsunet instead")
        return out | {"name": "rsunet"}
    part.take(str, "arch.type")
    if kind == "mednext":
        sizes: Table = {"size": part.take(str, "mednext.size", "arch.variant", "variant", default="S"),
                        "kernel": part.take(int, "mednext.kernel_size", default=3)}
        part.same({"mednext.dim": "3d"})
        if part.values.get("heads"):
            heads = part.part("heads")
            sizes["heads"] = [[name, heads.take(int, f"{name}.out_channels", default=1)] for name in heads.values]
            blocks = {heads.take(int, f"{name}.num_blocks", default=1) for name in heads.values}
            sizes["head_blocks"] = max(blocks)
        return out | {"name": "mednext", "mednext": sizes}
    sizes = {}
    filters = part.take(list, "monai.filters", "filters")
    width = part.take(list, "rsunet.width", default=[16, 32, 64, 128])
    if filters is not None and filters != width:
        notes.append(f"model.monai.filters {filters} and model.rsunet.width {width} disagree; the filters are taken, "
                     "as the documentation says (that code built the widths)")
        width = filters
    sizes["width"] = width
    for key, type_of, name, default in (
            ("norm", str, "norm", "batch"), ("groups", int, "num_groups", 8), ("act", str, "activation", "relu"),
            ("depth_2d", int, "depth_2d", 0), ("kernel_2d", list, "kernel_2d", [1, 3, 3]),
            ("down", list, "down_factors", None), ("kernel", int, "kernel_sizes", 3)):
        value = part.take(type_of, f"rsunet.{name}", f"rsunet_{name}", default=default)
        if value is not None:
            sizes[key] = value
    if kind == "rsunet_iso":
        sizes["down"] = [[2, 2, 2]] * (len(sizes["width"]) - 1)
    if any(isinstance(factor, list) and factor and factor[0] != 1 for factor in sizes.get("down", [])):
        sizes["up"] = "bilinear_yx"  # that net weighs y and x alone; without a factor along z both are the same
    return out | {"name": "rsunet", "rsunet": sizes}


def targets(tree: Tree, notes: list[str]) -> tuple[list[Table], Table]:
    """[[target]] and [labels]; without targets there, the label itself is the target: foreground."""
    part, found = tree.part("data.label_transform"), []
    labels = {"erosion": part.take(int, "erosion", default=0),
              "split": bool(part.take(bool, "relabel_connected_components"))}
    for target in part.parts("targets"):
        name, kwargs = str(target.values.get("name")), target.part("kwargs")
        if name == "affinity":
            found.append({"kind": "affinity", "offsets": _offsets(kwargs)})
        elif name in SIMPLE_TARGETS:
            found.append({"kind": SIMPLE_TARGETS[name], **_target_values(name, kwargs, notes)})
        else:
            notes.append(f"the target {name} is not here")
            continue
        target.take(str, "name")
        erosion = kwargs.take(int, "erosion")
        if erosion:
            found[-1]["erosion"] = erosion
    return found or [{"kind": "binary"}], labels


def _target_values(name: str, kwargs: Tree, notes: list[str]) -> Table:
    out: Table = {}
    for key, kind, theirs in (("thickness", int, "thickness"), ("exclusive", bool, "exclusive"),
                              ("sigma", float, "sigma")):
        if (value := kwargs.take(kind, theirs)) is not None:
            out[key] = value
    alpha = kwargs.take(float, "alpha")
    if alpha is not None:
        out["scale" if name == "signed_distance" else "alpha"] = alpha
    mode = kwargs.take(str, "mode")
    if mode == "2d":
        out["in_plane"] = True
    edges = kwargs.take(str, "edge_mode")
    if edges in EDGES:
        out["where"] = EDGES[edges]
    if name == "instance_edt":
        out["relabel"] = kwargs.take(bool, "relabel", default=True)
        if not out["relabel"]:
            notes.append(f"{kwargs.where}.relabel = false fills the holes of objects there; here they stay open")
    kwargs.same({"bg_value": -1.0})
    return out


def _offsets(kwargs: Tree) -> list[list[int]]:
    """Signed z, y, x; an edge stored at the later voxel (deepem) points back, one at the earlier (banis) ahead."""
    mode = kwargs.take(str, "affinity_mode") or ("deepem" if kwargs.take(bool, "deepem_crop") else None)
    sign = 1 if mode == "banis" else -1
    far = kwargs.take(int, "long_range")
    texts = kwargs.take(list, "offsets") or [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    if far:
        texts = [[n if axis == a else 0 for a in range(3)] for n in (1, far) for axis in range(3)]
    found = []
    for text in texts:
        steps = str(text).split("-") if isinstance(text, str) else text
        if not isinstance(steps, list) or len(steps) != 3 or not all(str(n).lstrip("-").isdigit() for n in steps):
            raise InputError(f"{kwargs.where}.offsets holds {text!r}; an offset reads \"0-0-1\" (z-y-x)")
        found.append([sign * int(n) for n in steps])
    return found


def loss(tree: Tree, notes: list[str]) -> Table:
    """[loss]."""
    part = tree.part("model")
    terms, place = [], "loss.losses" if part.parts("loss.losses") else "losses"
    for entry in part.parts(place):
        name = str(entry.values.get("function"))
        if name not in LOSSES:
            notes.append(f"the loss {name} is not here")
            continue
        entry.take(str, "function")
        term: Table = {"kind": LOSSES[name], "weight": entry.take(float, "weight", default=1.0)}
        for ours, theirs in (("prediction", "pred_slice"), ("target", "target_slice")):
            if (channels := entry.take(object, theirs)) is not None:
                term[ours] = ":".join(map(str, channels)) if isinstance(channels, list) else str(channels)
        if (head := entry.take(str, "pred_head")) is not None:
            term["head"] = head
        kwargs = entry.part("kwargs")
        positive = entry.take(object, "pos_weight")
        if positive is not None:
            term["positive_weight"] = positive if positive == "auto" else float(positive)
        if kwargs.take(bool, "auto_pos_weight") is False:
            term["positive_weight"] = 1.0
        if kwargs.take(bool, "tanh"):
            term["tanh"] = True
        if (smooth := kwargs.take(float, "smooth_nr")) is not None:
            term["smooth"] = smooth
            kwargs.same({"smooth_dr": smooth})
        if (gamma := kwargs.take(float, "gamma")) is not None:
            term["gamma"] = gamma
        if (classes := kwargs.take(list, "weight", "class_weights")) is not None:
            term["class_weights"] = classes
        if name in BALANCED and positive is None:
            term["balance"] = "halves"
        kwargs.same({"reduction": "mean", "sigmoid": True})
        terms.append(term)
    out: Table = {"terms": terms or [{"kind": "dice"}, {"kind": "bce"}]}
    if tree.take(str, "model.loss.loss_balancing.strategy") == "uncertainty":
        out["uncertainty"] = True
    return out
