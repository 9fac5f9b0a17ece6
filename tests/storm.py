"""Seeded random calls through the public faces of segment and metrics: each ends in a result or in a sentence.

    python -m tests.storm --seed 0 --calls 2000 [--kernels FOLDER]

Prints one line a call that ended otherwise, and a summary. A call is made twice, with plain arrays on one thread and
with the same numbers in odd layouts on some threads; two results must be the same bits. --kernels takes the kernels
from another folder (those of `make sanitize`). Tests run it as a child, so that a crash is theirs to see.
"""

import argparse
import faulthandler
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace

import numpy as np

from emcore.errors import InputError

LENGTHS = (0, 1, 1, 2, 3, 4, 5, 9, 17)
THREADS = (1, 2, 7, 64)
WHOLE = ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8")
ODD = ("?", *WHOLE, "f2", "f4", "f8", "g", "c8", "O", "U3", "S2", "M8[s]", "V5")
HOSTILE = (np.nan, np.inf, -np.inf, -1, 0, 1, 2, 0.5, 1e300, -1e300, 2**31, 2**32, 2**63, 2**70, None, "x", "", (),
           [0.5], np.array([]), np.array([0, 1]), True, 1j, b"y", {}, object)
SECONDS = 120  # a call that takes longer hangs


class Maker:
    """Arguments, mostly fine ones, drawn from one seed."""

    def __init__(self, seed: int, call: int):
        self.random = np.random.default_rng([seed, call])

    def one(self, choices):
        return choices[self.random.integers(len(choices))]

    def rarely(self, share: float = 0.06) -> bool:
        return self.random.random() < share

    def shape(self, rank: int = 3) -> tuple[int, ...]:
        if self.rarely(0.03):
            rank = int(self.random.integers(0, 6))
        return tuple(int(self.one(LENGTHS)) for _ in range(rank))

    def odd_array(self, shape: tuple[int, ...]) -> np.ndarray:
        if self.rarely(0.2):
            shape = self.shape(len(shape))
        dtype = np.dtype(self.one(ODD))
        raw = self.random.integers(0, 256, (*shape, dtype.itemsize), np.uint8)
        if dtype.kind == "O":
            return np.full(shape, "text", object)
        if dtype.kind == "b":
            raw &= 1
        if dtype.kind == "U":
            return np.full(shape, "abc")
        return raw.view(dtype).reshape(shape)

    def labels(self, shape: tuple[int, ...], most: int = 9, dtypes=WHOLE) -> np.ndarray:
        if self.rarely():
            return self.odd_array(shape)
        coarse = self.random.integers(0, most + 1, [-(-length // 2) for length in shape])
        for axis in range(len(shape)):
            coarse = coarse.repeat(2, axis)
        labels = coarse[tuple(slice(length) for length in shape)].astype(self.one(dtypes))
        if self.rarely() and labels.size:
            labels.flat[self.random.integers(labels.size)] = self.one(
                (np.iinfo(labels.dtype).max, np.iinfo(labels.dtype).min))
        return labels

    def affs(self, shape: tuple[int, ...], channels: int | None = None) -> np.ndarray:
        channels = channels if channels is not None else int(self.one((3, 3, 3, 4, 6, 2, 0)))
        if self.rarely():
            return self.odd_array((channels, *shape))
        values = self.random.integers(0, 9, (channels, *shape)) / 8
        if self.rarely() and values.size:
            values.flat[self.random.integers(values.size)] = self.one((np.nan, np.inf, -1, 2, 65000, -0.0))
        dtype = self.one(("f4", "f4", "f2", "u1"))
        with np.errstate(all="ignore"):
            return (values * 255).astype("u1") if dtype == "u1" else values.astype(dtype)

    def mask(self, shape: tuple[int, ...]) -> np.ndarray | None:
        return None if self.rarely(0.5) else self.odd_array(shape) if self.rarely() else self.random.random(shape) < 0.7

    def number(self, low: float = 0.0, high: float = 1.0):
        return self.one(HOSTILE) if self.rarely() else float(self.random.uniform(low, high))

    def count(self, most: int = 20):
        return self.one(HOSTILE) if self.rarely() else int(self.random.integers(0, most))

    def numbers(self, low: float, high: float, count: int = 3):
        return self.one(HOSTILE) if self.rarely() else self.random.uniform(low, high, count).tolist()

    def rising(self, low: float, high: float, count: int = 3):
        return self.one(HOSTILE) if self.rarely() else sorted(self.random.uniform(low, high, count).tolist())

    def offsets(self, channels: int):
        if self.rarely():
            return self.one(HOSTILE)
        if self.rarely():
            return self.random.integers(-2**62, 2**62, (channels, 3))
        nearest = [(-1, 0, 0), (0, -1, 0), (0, 0, -1)]
        return [*nearest, *self.random.integers(-4, 5, (max(0, channels - 3), 3)).tolist()][:channels]

    def convention(self, affs: np.ndarray) -> dict:
        options = {"edge": self.one(("later", "later", "earlier", "x")) if self.rarely(0.3) else "later"}
        if (affs.ndim and affs.shape[0] != 3) or self.rarely():
            options["offsets"] = self.offsets(affs.shape[0] if affs.ndim else 3)
        if affs.dtype == np.uint8 and self.rarely(0.3):
            options["table"] = np.linspace(0, 1, 256) ** 2
        return options

    def statistic(self):
        return self.one(("mean", "mean", "max", "min", "aff85_his256", "aff50", "aff75_his256_all", "aff101", "size"))

    def graph(self):
        """A graph of a small volume, damaged in one place now and then."""
        from emcore import segment
        shape = tuple(int(self.one((1, 2, 3, 5, 9))) for _ in range(3))
        fragments = self.random.integers(0, self.one((2, 9, 200)), shape).astype(np.uint32) % max(1, np.prod(shape))
        affs = (self.random.integers(0, 9, (3, *shape)) / 8).astype(np.float32)
        graph = segment.region_graph(fragments.astype(np.uint32), affs, extras=(
            "sizes", "boxes", "histogram", "running_mean"), threads=1)
        return self.damaged(graph) if self.rarely(0.4) else graph

    def tree(self, fragments: int | None = None):
        from emcore import segment
        count = int(self.random.integers(0, 12)) if fragments is None else fragments
        merges = int(self.random.integers(0, count + 1)) if count else 0
        ids = self.random.integers(1, count + 1, (2, merges)).astype(np.uint32) if count else np.zeros((2, 0), "u4")
        tree = segment.MergeTree(count, *ids, np.sort(self.random.random(merges)).astype(self.one(("f4", "f8"))))
        return self.damaged(tree) if self.rarely(0.3) else tree

    def damaged(self, whole):
        """A dataclass with one field broken: cut short, of another type, out of range, out of order, or no array."""
        name = self.one([field.name for field in fields(whole)])
        value = getattr(whole, name)
        if not isinstance(value, np.ndarray) or self.rarely(0.1):
            return replace(whole, **{name: self.one((*HOSTILE, 2**40, -5))})
        value, kind = value.copy(), self.random.integers(6)
        if kind == 0:
            value = value[:-1] if self.rarely(0.5) else np.concatenate([value, value[:1]])
        elif kind == 1:
            value = value.astype(self.one(("f8", "i8", "u8", "u4", "f4", "?")))
        elif kind == 2:
            value = value[::-1]
        elif value.size:
            extremes = (np.nan, np.inf, -1.0, 2.0) if value.dtype.kind == "f" else (
                np.iinfo(value.dtype).max, np.iinfo(value.dtype).min, 0, 2**31, np.iinfo(value.dtype).max - 1)
            value.flat[self.random.integers(value.size)] = self.one(extremes)
        return replace(whole, **{name: value})

    def table(self):
        from emcore import metrics
        shape = self.shape(3)
        truth = self.random.integers(0, 6, shape)
        table = metrics.contingency(truth, self.random.integers(0, 6, shape), threads=1)
        return truth if self.rarely() else self.one(HOSTILE) if self.rarely() else table

    def odd(self, value):
        """The same numbers in another layout, also inside of lists, dictionaries and dataclasses."""
        if isinstance(value, tuple | list) and any(isinstance(item, np.ndarray) for item in value):
            return type(value)(self.odd(item) for item in value)
        if isinstance(value, dict):
            return {name: self.odd(item) for name, item in value.items()}
        if is_dataclass(value) and not isinstance(value, type) and type(value).__name__ in ("RegionGraph", "MergeTree"):
            return replace(value, **{field.name: self.odd(getattr(value, field.name)) for field in fields(value)})
        if not isinstance(value, np.ndarray) or value.dtype.kind in "OUSVM":
            return value
        kind = self.random.integers(7)
        if kind == 1:
            value = np.asfortranarray(value)
        elif kind == 2 and value.ndim:
            value = np.repeat(value, 2, axis=-1)[..., ::2]
        elif kind == 3 and value.ndim:
            value = value[::-1].copy()[::-1]
        elif kind == 4:
            packed = np.zeros(value.shape, [("pad", "u1"), ("value", value.dtype)])  # unaligned, strides odd
            packed["value"] = value
            value = packed["value"]
        elif kind == 5:
            value = value.astype(value.dtype.newbyteorder(">"))
        elif kind == 6:
            value = value.copy()
            value.flags.writeable = False
        return value


def segment_calls(make: Maker) -> dict[str, Callable[[], tuple]]:
    """Public name -> what draws its arguments (positional, by name)."""
    from emcore import segment
    shape = make.shape()
    pair = [*shape, 1, 1, 1]
    face = tuple(pair[:2])

    def with_affs(*more, **options):
        affs = make.affs(shape)
        return (affs, *more), options | {"convention": make.convention(affs)}

    def one_channel(shape):
        values = make.affs(shape, 1)
        return values[0] if values.ndim and len(values) else values

    def labelled(*more, **options):
        affs = make.affs(shape, 3)
        return (make.labels(shape), affs, *more), options | {"convention": make.convention(affs)}

    def cut_arguments():
        tree = make.tree()
        most = tree.fragments if isinstance(tree.fragments, int) and 0 < tree.fragments < 99 else 3
        return (make.labels(shape, most), tree), {}

    def mutex():
        channels = int(make.one((0, 1, 2, 3, 5)))
        affs, options = make.affs(shape, channels), {}
        if make.rarely(0.5):
            options["bias"] = make.numbers(-1, 0, channels) if make.rarely(0.5) else make.number(-1, 0)
        if make.rarely(0.4):
            options["strides"] = make.one(((1, 2, 2), (1, 1, 1), np.full((channels, 3), 2, "u1"), 2**70, [2**63] * 3))
        if make.rarely(0.3):
            options["attractive"] = make.count(4)
        return (affs, make.offsets(channels)), options | {"mask": make.mask(shape)}

    def halo():
        options = {"extras": tuple(make.one(("sizes", "boxes", "histogram", "running_mean")) for _ in range(2))}
        place = {}
        if make.rarely(0.5):
            place |= {"halo": make.random.integers(0, 3, 3).tolist() if not make.rarely() else make.one(HOSTILE)}
        if make.rarely(0.3):
            place |= {"origin": (1, 2, 3), "volume_shape": [length + 9 for length in pair[:3]]}
        if make.rarely():
            place |= {"volume_shape": (2**40,) * 3}
        return labelled(**options, place=segment.Place(**place) if place else None)

    prediction = make.affs(shape, 3)
    return {
        "watershed": lambda: with_affs(make.number(0, 0.5), make.number(0.5, 1), mask=make.mask(shape),
                                       ties=make.one(("canonical", "canonical", "waterz", "x"))),
        "encode_affinities": lambda: ((make.affs(shape),), {}),
        "decode_affinities": lambda: ((make.affs(shape),), {"table": make.one((None, np.linspace(0, 1, 256)))}),
        "Affinities": lambda: ((make.affs(shape),), make.convention(make.affs(shape))),
        "slice_watershed": lambda: with_affs(boundary_threshold=make.number()),
        "seeded_slices": lambda: with_affs(make.one(("maxima_distance", "minima", "minima-0.5", "hminima-0.1", "grid-2",
                                                     "grid-1e300", "hminima--1", "hminima-inf", 3, None, "grid-0"))),
        "flood": lambda: ((one_channel(shape), make.labels(shape), make.mask(shape)), {}),
        "region_graph": halo,
        "pool_graphs": lambda: (([make.graph() for _ in range(make.random.integers(0, 4))],), {}),
        "agglomerate": lambda: ((make.graph(), make.statistic()), {"ties": make.one(("canonical", "waterz")),
                                                               "threshold": make.one((None, make.number()))}),
        "size_linkage": lambda: ((make.graph(), make.count(), make.number()), {}),
        "cut": lambda: ((*cut_arguments()[0], make.one((make.number(), make.numbers(0, 1, 3)))), {}),
        "sweep": lambda: ((*cut_arguments()[0], make.rising(0, 1)), {}),
        "parse_statistic": lambda: ((make.one((*HOSTILE, make.statistic())),), {}),
        "segment": lambda: with_affs(make.number(), make.statistic(), ties=make.one(("canonical", "waterz"))),
        "segmented": lambda: with_affs(make.number(), {"dust_size": make.count(), "remove_size": make.count(),
                                                       "boundary": make.number(-0.3, 0.3)},
                                       statistic=make.statistic(), ties=make.one(("canonical", "waterz"))),
        "merge_small": lambda: labelled(make.count(), remove_size=make.count(), statistic=make.statistic()),
        "remove_small": lambda: ((make.labels(shape), make.count()), {}),
        "boundary_threshold": lambda: labelled(make.number()),
        "link_sections": lambda: labelled(segment.LinkRule(iou=make.number(), affinity=make.number(),
                                                           min_size=make.count())),
        "merge_faces": lambda: ((make.labels(face), make.labels(face), make.one((None, one_channel(face)))),
                                {"affinity": make.number(), "iou": make.number()}),
        "join_pairs": lambda: ((make.labels((make.one(LENGTHS), make.one((2, 2, 2, 3)))),), {}),
        "relabel": lambda: ((make.labels(make.shape(make.one((1, 2, 3, 4)))),), {"smallest": make.rarely(0.5)}),
        "remap": lambda: ((make.labels(shape), make.one(({1: 5, 2: 2**40}, {}, (np.arange(10), np.arange(10)[::-1]),
                                                          (np.arange(3), np.arange(4)), {1: -1}, {1: 0.5}, 3))),
                          {"missing": make.one(("error", "keep", 0, 2**70, "x", None))}),
        "unique": lambda: ((make.labels(shape), make.rarely(0.5)), {}),
        "mask_out": lambda: ((make.labels(shape), make.one(([1, 2], np.arange(3), [2**64 - 1], [], [-1], 3))),
                             {"keep": make.rarely(0.5)}),
        "connected_components": lambda: ((make.labels(make.shape(make.one((2, 3)))),
                                          make.one((None, 4, 6, 8, 18, 26, 7))), {"count": make.rarely(0.5)}),
        "affinity_components": lambda: with_affs(make.number(), method=make.one(("graph", "voxels"))),
        "distance_transform": lambda: ((make.labels(shape), make.one((None, make.numbers(1, 50), [1e-300, 1, 1]))),
                                       {"squared": make.rarely(0.5), "black_border": make.rarely(0.5)}),
        "signed_distance": lambda: ((make.labels(shape, 1),), {}),
        "mutex_watershed": mutex,
        "dilate": lambda: ((make.labels(shape), make.one((3, (1, 3, 5), 2**70 + 1, make.count()))),
                           {"footprint": make.one(("box", "cross")), "iterations": make.count(4)}),
        "erode": lambda: ((make.labels(shape), make.one((3, (1, 3, 5), make.count()))),
                          {"footprint": make.one(("box", "cross")), "iterations": make.count(4)}),
        "fill_holes": lambda: ((make.labels(shape, 1),), {"per_section": make.rarely(0.5)}),
        "polarity_instances": lambda: ((prediction, make.number(), make.count()), {
            "scale_factors": make.one((1, make.number(0.5, 2), (1, 2, 0.5), 1e300)), "semantic": make.rarely(0.5),
            "dilate_size": make.one((1, 3, 5, make.count())), "exclusive": make.rarely(0.5)}),
        "partner_instances": lambda: ((make.affs(shape, 6), make.numbers(1, 50), make.number(), make.count()), {
            "reach_nm": make.one((200.0, 1e-300, 1e300, make.number(0, 500))), "exclusive": make.rarely(0.5)}),
        "contour_instances": lambda: ((prediction,), {"binary": make.numbers(0, 1, 2), "remove_size": make.count(),
                                                      "min_seed": make.count()}),
        "skeletonize": lambda: ((make.labels(shape), make.numbers(1, 50)), {
            "scale": make.one((1.5, make.number(0, 5), 1e12, 1e300)), "dust_voxels": make.count(),
            "const_nm": make.one((None, make.number(0, 500), 1e15))}),
        "skeleton_volume": lambda: ((make.labels(shape), make.numbers(1, 50)), {"dust_voxels": make.count()}),
    }


def metrics_calls(make: Maker) -> dict[str, Callable[[], tuple]]:
    shape, nodes = make.shape(), int(make.one(LENGTHS))
    places = make.random.uniform(0, 100, (nodes, 3))

    def of_table(*more, **options):
        return lambda: ((make.table(), *more), options)

    def two(*more, **options):
        return lambda: ((make.labels(shape), make.labels(shape), *more), options)

    from emcore.metrics.partitions import CONVENTIONS
    convention = make.one((*CONVENTIONS, "x", make.one(HOSTILE)))
    return {
        "contingency": two(make.one(((0,), (), (2**64 - 1,), [-1], 3, "x")), mask=make.mask(shape)),
        "pool": lambda: (([make.table() for _ in range(2)],), {"same_objects": make.rarely(0.5)}),
        "voi": of_table(*([np.zeros(3)] if make.rarely() else [])),
        "rand": of_table(convention),
        "cremi_score": of_table(),
        "foreground_restricted": of_table(),
        "overlap_indices": of_table(),
        "fold": lambda: ((make.table(), make.tree(int(make.random.integers(3, 8)))), {}),
        "threshold_curve": lambda: ((make.labels(shape, 5), make.tree(5), make.labels(shape)),
                                    {"mask": make.mask(shape)}),
        "neuron_border_mask": lambda: ((make.labels(shape), make.numbers(1, 50),
                                        make.one((None, make.number(0, 90)))), {}),
        "box_border_mask": lambda: ((make.labels(shape), make.count(4), make.count(4)), {}),
        "clefts": two(make.numbers(1, 50), make.number(0, 300), background=make.one((None, 0, 0, 2**64 - 1, 0.5, 300))),
        "confusion": two(make.number(), mask=make.mask(shape)),
        "jaccard": two(make.number()),
        "dice": two(make.number()),
        "accuracy": two(make.number()),
        "match_instances": of_table(make.number(), make.one(("iou", "iot", "iop", "x"))),
        "average_precision": of_table(make.one((None, {i: float(i) for i in range(9)}, {}, [1, 2])),
                                      make.one((None, (0, 9), (1, 2, 3)))),
        "synapse_f1": of_table(make.one(("em_r50", "sides", "x")), make.number()),
        "synaptic_partners": lambda: ((make.random.uniform(0, 50, (nodes, 2, 3)), make.random.uniform(0, 50, (3, 2, 3)),
                                       make.labels((5, 9, 9)), make.numbers(5, 20)),
                                      {"threshold_nm": make.number(0, 90)}),
        "labels_at": lambda: ((make.labels((5, 9, 9)), places * make.one((0.3, 0.3, 1, 1e300)), make.numbers(5, 30)),
                              {"offset": make.one(((0, 0, 0), make.numbers(0, 3), (0, 0)))}),
        "run_length": lambda: ((make.labels((nodes,), 2), make.labels((nodes,), 3),
                                make.random.integers(0, max(1, nodes), (3, 2)) if nodes else [], make.numbers(0, 5)),
                               {"contact_nodes": make.number(0, 3), "no_merge": make.labels((3,))}),
        "edge_scores": lambda: ((make.labels((nodes, 2), 3), make.labels((3, 2), 3),
                                 make.one(((1, 2, 5), (0,), ()))), {}),
        "matched_ids": of_table(),
        "skeleton_voi": lambda: ((make.labels((nodes,)), make.labels((nodes,))), {}),
    }


def segmented(affs, threshold, after, **options):
    """Labels, and the explanation of a voxel, of a Segmentation."""
    from emcore import segment
    whole = segment.Segmentation(affs, **options)
    return whole.labels(threshold, **after), str(whole.explain((0, 0, 0), threshold, (0, 0, 0)))


def of_affinities(function: Callable) -> Callable:
    """The function with the offsets, edge and table of its first array of four axes given apart."""
    from emcore import segment

    def called(*arguments, convention=None, **options):
        if convention is not None:
            place = 1 if function.__name__ in ("region_graph", "merge_small", "boundary_threshold",
                                               "link_sections") else 0
            arguments = list(arguments)
            arguments[place] = segment.Affinities(arguments[place], **convention)
        return function(*arguments, **options)

    return called


WITHOUT_THREADS = {"Affinities", "decode_affinities", "flood", "pool_graphs", "size_linkage", "parse_statistic",
                   "merge_faces", "join_pairs", "pool", "voi", "rand", "cremi_score", "foreground_restricted",
                   "overlap_indices",
                   "fold", "confusion", "jaccard", "dice", "accuracy", "match_instances", "average_precision",
                   "synapse_f1", "synaptic_partners", "labels_at", "run_length", "skeleton_voi",
                   "edge_scores", "matched_ids"}


def outcome(function: Callable, arguments: tuple, options: dict):
    """(what came of it, the result or the sentence); what is neither result nor sentence is told by its traceback."""
    try:
        result = function(*arguments, **options)
        if hasattr(result, "__next__"):
            result = [(step, labels.copy()) for step, labels in result]
        return "result", result
    except InputError as error:
        return "InputError" if " " in str(error) and "\n" not in str(error).strip() else "no sentence", str(error)
    except MemoryError:
        return "MemoryError", ""
    except TypeError as error:
        return "TypeError" if " " in str(error) else "no sentence", str(error)
    except Exception:
        return "other exception", traceback.format_exc()


def same(one, other) -> bool:
    """Whether two results hold the same bits."""
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype.newbyteorder("=") and one.shape == other.shape and bool(
            ((one == other) | ((one != one) & (other != other))).all())
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if is_dataclass(one):
        return all(same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
    return bool(one == other or (one != one and other != other))


def call(seed: int, number: int) -> tuple[str, str, str]:
    """(the function of one call, what came of it, what to tell if that is wrong)."""
    from emcore import metrics, segment
    make = Maker(seed, number)
    module, calls = (segment, segment_calls(make)) if make.random.random() < 0.65 else (metrics, metrics_calls(make))
    name = make.one(sorted(calls))
    arguments, options = calls[name]()
    odd_arguments, odd_options = make.odd(arguments) if arguments else arguments, make.odd(options)
    if name not in WITHOUT_THREADS:
        options["threads"], odd_options["threads"] = 1, make.one(THREADS)
    function = segmented if name == "segmented" else getattr(module, name)
    function = of_affinities(function) if module is segment else function
    plain, wanted = outcome(function, arguments, options)
    kind, found = outcome(function, odd_arguments, odd_options)
    for what, told in ((plain, wanted), (kind, found)):
        if what in ("no sentence", "other exception"):
            return name, what, str(told)
    if plain == kind == "result" and not same(wanted, found):
        return name, "other result", f"threads {odd_options.get('threads')}, plain:\n{wanted}\nodd:\n{found}"
    if "result" in (plain, kind) and plain != kind and "dtype('>" not in repr(odd_arguments) and ">" not in str(found):
        return name, "other outcome", f"plain {plain}, odd {kind}: {found if plain == 'result' else wanted}"
    return name, kind, ""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--kernels")
    options = parser.parse_args()
    if options.kernels:
        import emcore.kernels
        emcore.kernels.__path__.insert(0, options.kernels)
    else:
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))  # so that a huge allocation fails as on a full machine
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    begin, counts, wrong = time.monotonic(), Counter(), 0
    for number in range(options.first, options.first + options.calls):
        print(f"call {number}", end="\r", flush=True)  # the last one is the one that crashed
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        name, kind, told = call(options.seed, number)
        faulthandler.cancel_dump_traceback_later()
        counts[kind] += 1
        if told:
            wrong += 1
            print(f"call {number} {name}: {kind}\n{told}", flush=True)
    print(f"storm of seed {options.seed}: {options.calls} calls, {wrong} wrong, {dict(counts)}, "
          f"{time.monotonic() - begin:.0f} s")
    return wrong > 0


if __name__ == "__main__":
    faulthandler.enable()
    sys.exit(main())
