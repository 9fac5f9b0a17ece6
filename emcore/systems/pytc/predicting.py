"""PyTorch Connectomics' inference, decoding and evaluation settings as tables of ours."""

from collections.abc import Mapping
from typing import Any

from emcore.errors import InputError
from emcore.settings.channels import channels_of
from emcore.systems.pytc.profiles import DECODING, with_template
from emcore.systems.pytc.tree import Tree, pair, whole_numbers

Table = dict[str, Any]
MOST_CHANNELS = 1000  # so many are told one by one; a net of more is refused where it is built
# a parameter of the search there -> here
SPACE = {"merge_function": "statistic", "thresholds": "threshold", "aff_threshold_low": "low",
         "aff_threshold_high": "high", "boundary_threshold": "boundary", "dust_merge_size": "dust_size",
         "dust_merge_affinity": "dust_affinity", "dust_remove_size": "remove_size"}
SCORES = {"adapted_rand": "rand", "voi": "voi", "jaccard": "jaccard", "cremi_distance": "clefts",
          "instance_matching": "instances"}


def infer(tree: Tree, pad: list[int], offsets: list[list[int]], notes: list[str]) -> Table:
    """[infer]; pad is that of the data, which the prediction loses again."""
    part = tree.part("inference")
    out: Table = {"pad": pad}
    for key, kind, name in (("window", list, "window_size"), ("batch", int, "sw_batch_size"),
                            ("overlap", float, "overlap"), ("blend", str, "blending")):
        if (value := part.take(kind, f"window.{name}", f"sliding_window.{name}")) is not None:
            out[key] = value
    part.same({f"{place}.{name}": value for place in ("window", "sliding_window") for name, value in (
        ("padding_mode", "reflect"), ("keep_input_on_cpu", False), ("sigma_scale", 0.25))})
    names = ("model.select_channel", "select_channel", "test_time_augmentation.select_channel")
    select = whole_numbers(part.take(list, *names, default=[]), part.path(names[0]))
    if select:
        out["select"] = select
    crop = part.take(list, "model.crop_pad", "crop_pad")
    reach = [max([0, *(abs(offsets[c][axis]) for c in select or range(len(offsets)) if c < len(offsets))])
             for axis in range(3)]
    later, earlier = ([side for p, r in zip(pad, reach) for side in sides(p, r)]  # where edges are stored
                      for sides in (lambda p, r: (p - r, p), lambda p, r: (p, p - r)))
    if crop and crop not in (pad, later, earlier):
        notes.append(f"crop_pad {crop} does not give the image's own extent back; here predictions always have it")
    views = part.part("test_time_augmentation")
    activations = [_activation(entry) for entry in views.take(list, "channel_activations", default=[])]
    if activations:
        out["activation"] = activations
    if views.take(bool, "enabled"):
        flips = views.take(object, "flip_axes", default="all")
        out["views"] = {"flips": [0, 1, 2] if flips == "all" else _axes(flips)}
        if views.take(object, "rotation90_axes"):
            out["views"]["turns"] = True
        mode = views.take(object, "ensemble_mode", default="mean")
        out["views"]["combine"] = mode if isinstance(mode, str) else "mean"
        if not isinstance(mode, str):
            notes.append(f"the views are combined by the mean, not by {mode}")
        views.same({"patch_first_local": True})
    else:
        views.done()
    kind = part.take(str, "save_dtype", "save_prediction.intensity_dtype")
    if kind in ("float32", "float16"):
        out["dtype"] = kind
    elif kind is not None:
        notes.append(f"predictions are stored as float32, not as {kind}")
    part.same({"save_results": True, "save_prediction.enabled": True, "save_prediction.intensity_scale": -1,
               "save_prediction.output_formats": ["h5"], "postprocessing.enabled": True})
    return out


def _activation(entry: Any) -> Table:
    if isinstance(entry, Mapping):
        return {"channels": str(entry.get("channels", ":")), "kind": entry.get("activation", "sigmoid")}
    if isinstance(entry, list) and len(entry) == 3:  # first, last, name: the form of 2025
        return {"channels": f"{entry[0]}:{entry[1]}", "kind": entry[2]}
    return {"channels": str(entry)}


def make_polarity(table: Table, listed: bool, notes: list[str]) -> None:
    """What a recipe of clefts leaves as it was, and the decoder of pre- and postsynaptic sides cannot work with.

    listed: the config names targets of its own.
    """
    exclusive = table["decode"]["exclusive"]
    if not listed:
        table["target"] = [{"kind": "polarity", "exclusive": exclusive}]
        notes.append("the target is polarity, which the decoder polarity2instance needs: labels 2n - 1 before and 2n "
                     "behind synapse n; there a script prepares it")
    kind = "softmax" if exclusive else "sigmoid"
    if without := _without_activation(table):
        table["infer"]["activation"] = [{"channels": ":", "kind": kind}]
        notes.append(f"{kind} is the activation of all channels; channel_activations leave out {without}, in whose "
                     "logits polarity2instance finds nothing")
    scores = table["evaluate"].get("scores", ())
    if lost := [name for name in scores if name in ("clefts", "jaccard")]:
        table["evaluate"]["scores"] = ["synapses", *(name for name in scores if name not in lost)]
        notes.append(f"synapses are scored in place of {' and '.join(lost)}, which see no sides")


def tell_logits(table: Table, notes: list[str]) -> None:
    """A note where some channels have no activation."""
    if without := _without_activation(table):
        notes.append(f"channel_activations leave out {without}, which stay logits")


def _without_activation(table: Table) -> str:
    """The channels that no entry of [[infer.activation]] names, in words."""
    model, activations = table["model"], table["infer"].get("activation")
    heads = model.get("mednext", {}).get("heads")
    count = sum(channels for _, channels in heads) if heads else model["out_channels"]
    if activations is None or not 1 <= count <= MOST_CHANNELS:
        return ""
    left = set(range(count))
    for entry in activations:
        try:
            left -= set(range(count)[channels_of(entry["channels"], count, "channel_activations")])
        except InputError:  # the prediction says that there is no such channel
            continue
    left &= set(table["infer"].get("select", left))
    return f"channel{'s' * (len(left) > 1)} {', '.join(map(str, sorted(left)))}" if left else ""


def _axes(flips: Any) -> list[int]:
    if not isinstance(flips, list):
        return []
    return sorted({axis for item in flips for axis in (item if isinstance(item, list) else [item])
                   if axis in (0, 1, 2)})


def decode(tree: Tree, select: list[int], offsets: list[list[int]], libraries: Mapping[str, Any],
           notes: list[str]) -> Table:
    """[decode], from the one step that makes labels."""
    found: Table = {}
    for place in DECODING:
        for entry in tree.parts(place):
            steps = with_template(entry.values, libraries)
            if steps is None:
                continue  # import_config tells it
            entry.take(str, "template")
            for values in steps:
                step = Tree(values, entry.where, tree.taken)
                made = _step(step, select, offsets, notes)
                if made is None:
                    notes.append(f"the decoding step {values.get('name')} is not here")
                elif found:
                    notes.append(f"only one decoding step makes labels here; {values.get('name')} is left out")
                else:
                    found = made
                    step.take(str, "name")
        if found:
            break
    tree.same({"decoding.postprocessing.enabled": True})
    return found


def _step(step: Tree, select: list[int], offsets: list[list[int]], notes: list[str]) -> Table | None:
    name, kwargs = step.values.get("name"), step.part("kwargs")
    if name == "decode_waterz":
        return _waterz(kwargs, select, offsets, notes)
    if name == "polarity2instance":
        return {"kind": "polarity", "threshold": kwargs.take(float, "thres", default=0.5),
                "small": kwargs.take(int, "thres_small", default=128),
                "exclusive": kwargs.take(bool, "exclusive", default=False)}
    if name == "decode_instance_binary_contour_distance":
        contour = {ours: pair(kwargs.take(object, f"{ours}_threshold", default=default), kwargs.where)
                   for ours, default in (("binary", [0.9, 0.85]), ("contour", [0.8, 1.1]), ("distance", [0.5, 0.0]))}
        contour["min_seed"] = kwargs.take(int, "min_seed_size", default=32)
        return {"kind": "contour", "remove_size": kwargs.take(int, "min_instance_size", default=0), "contour": contour}
    if name == "decode_affinity_cc":
        return {"kind": "connected", "threshold": kwargs.take(float, "threshold", default=0.5)}
    return None


def _waterz(kwargs: Tree, select: list[int], offsets: list[list[int]], notes: list[str]) -> Table:
    thresholds = kwargs.take(object, "thresholds", default=0.3)
    if isinstance(thresholds, list):
        if len(thresholds) != 1:
            notes.append(f"of the thresholds {thresholds} the last is taken: infer.py --cut makes the others at once")
        thresholds = thresholds[-1] if thresholds else 0.3
    low, high = pair(kwargs.take(list, "aff_threshold", default=[1e-4, 0.9999]), kwargs.path("aff_threshold"))
    out: Table = {"kind": "affinities", "statistic": kwargs.take(str, "merge_function", default="aff50_his256"),
                  "threshold": thresholds, "low": low, "high": high,
                  "boundary": kwargs.take(float, "boundary_threshold", default=0.0)}
    if kwargs.take(bool, "dust_merge", default=True):
        out["dust_size"] = kwargs.take(int, "dust_merge_size", default=0)
        out["dust_affinity"] = kwargs.take(float, "dust_merge_affinity", default=0.0)
    out["remove_size"] = kwargs.take(int, "dust_remove_size", default=0)
    if kwargs.take(bool, "compute_fragments"):
        out["fragments"] = kwargs.take(str, "seed_method", default="maxima_distance")
    link = ("iou_threshold", "best_buddy", "one_sided_threshold", "one_sided_min_size", "affinity_threshold")
    if kwargs.take(bool, "branch_merge"):
        out["link"] = {"iou": kwargs.take(float, link[0], default=0.5),
                       "best_buddy": kwargs.take(bool, link[1], default=True),
                       "one_sided": kwargs.take(float, link[2], default=0.8),
                       "one_sided_size": kwargs.take(int, link[3], default=100),
                       "affinity": kwargs.take(float, link[4], default=0.0)}
    else:
        for name in link:  # they do nothing unless branch_merge is set
            kwargs.done(name)
    kwargs.same({"use_aff_uint8": False, "use_seg_uint32": False})
    used = [offsets[c] for c in select or range(len(offsets)) if c < len(offsets)][:3]
    order = kwargs.take(str, "channel_order", default="xyz")
    axes = [next((axis for axis in range(3) if offset[axis]), None) for offset in used]
    if len(used) == 3 and any(sum(map(abs, offset)) != 1 for offset in used) and sorted(map(str, axes)) == list("012"):
        out["channels"] = [axes.index(axis) for axis in range(3)]
    elif len(used) == 3 and "".join("zyx"[axis] for axis in axes if axis is not None) != order:
        notes.append(f"{kwargs.where}.channel_order {order} contradicts the offsets {used}, which count here")
    return out


def evaluate(tree: Tree, notes: list[str]) -> Table:
    """[evaluate]."""
    part = tree.part("evaluation")
    if part.take(bool, "enabled", default=True) is False:
        part.done()
        return {}
    metrics = [str(name) for name in part.take(list, "metrics", default=[])]
    for name in metrics:
        if name not in SCORES:
            notes.append(f"the metric {name} is not here")
    scores = [SCORES[name] for name in metrics if name in SCORES]
    out: Table = {"scores": scores} if scores else {}
    if "rand" in scores:
        out["convention"] = "snemi3d"
    if (threshold := part.take(float, "prediction_threshold")) is not None:
        out["threshold"] = threshold
    return out


def tune(tree: Tree, notes: list[str]) -> Table:
    """[tune] without its volumes: the ranges of the search, every point of which is tried here."""
    space: Table = {}
    parameters = tree.part("parameter_space.decoding.parameters")
    for name, key in SPACE.items():
        entry = parameters.part(name)
        choices, span = entry.take(list, "choices"), entry.take(list, "range")
        if choices:
            space[key] = choices
        elif span:
            low, high = pair(span, entry.path("range"))
            step = entry.take(float, "step")
            space[key] = {"min": low, "max": high} | ({"step": step} if step else {})
        for word in ("type", "param_group", "tuple_index", "description"):
            entry.done(word)
    tree.done("parameter_space.decoding.defaults")  # where the search there begins
    metric = tree.take(str, "optimization.single_objective.metric")
    if metric not in (None, "adapted_rand"):
        notes.append(f"the search makes adapted_rand small, not {metric}")
    return {"space": space} if space else {}
