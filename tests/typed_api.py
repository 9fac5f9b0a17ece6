"""The whole public API in use: mypy --strict checks this file (make types), and test_house.py runs it.

assert_type fails where a type checker sees Any or another type, so no name may lose its types on the way.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import torch
from numpy.typing import NDArray

import emcore
from emcore import decode, metrics, segment, volumes
from emcore.metrics.binary import Confusion
from emcore.metrics.cleft_distances import Clefts
from emcore.metrics.curves import ThresholdCurve
from emcore.metrics.instances import AveragePrecision, Matching
from emcore.metrics.partitions import ForegroundRestricted, OverlapIndices, Rand, Voi
from emcore.metrics.skeletons import RunLength
from emcore.metrics.synapses import PartnersF1, SynapseF1
from emcore.metrics.wiring import EdgeScore
from emcore.segment.linking import Joined
from emcore.settings.decode import AffinityDecode

Array = NDArray[Any]
AFFINITIES = np.random.default_rng(0).random((3, 6, 12, 14), np.float32)
LABELS = np.arange(6 * 12 * 14, dtype=np.uint64).reshape(6, 12, 14) // 200
RESOLUTION = (30.0, 8.0, 8.0)


def use_volumes(folder: Path) -> None:
    with emcore.create_volume(folder / "raw.h5:raw", LABELS.shape, "uint8", RESOLUTION) as out:
        assert_type(out, volumes.Writer)
        out[...] = LABELS.astype(np.uint8)
    with volumes.create_volume(folder / "labels.npy", (6, 12, 14), np.uint64, chunks=(2, 12, 14)) as writer:
        writer[0:6] = LABELS
    raw = emcore.open_volume(folder / "raw.h5")
    assert_type(raw, volumes.Volume)
    assert_type(raw[2:4, :, 5], Array)
    assert_type(raw.shape, tuple[int, ...])
    assert_type(raw.resolution, tuple[float, float, float] | None)
    assert_type(volumes.check_labels(volumes.open_volume(folder / "labels.npy", kind="labels")), volumes.Volume)
    assert_type(volumes.placement(raw, raw), tuple[slice, slice, slice])
    assert_type(volumes.split_reference(f"{folder}/raw.h5:raw"), tuple[Path, str | None])
    for listed in volumes.list_datasets(folder / "raw.h5"):
        assert_type(listed, volumes.Listed)
        assert_type(listed.dtype, np.dtype[Any])
    layout = volumes.Layout(chunks=(4, 8, 8), levels=2, layer="image")
    if importlib.util.find_spec("tensorstore"):
        volumes.write_ome_zarr(raw, folder / "raw.ome.zarr", layout, version="0.4")
        volumes.write_precomputed(raw, folder / "raw.precomputed", layout, encoding="jpeg")


def use_fragments() -> Array:
    fragments = segment.watershed(AFFINITIES, low=0.1, high=0.999)
    assert_type(fragments, Array)
    given = segment.Affinities(AFFINITIES, [(-1, 0, 0), (0, -1, 0), (0, 0, -1)])
    assert_type(segment.watershed(given), Array)
    assert_type(segment.face_forest(given, smooth=1), Array)
    codes, table = segment.encode_affinities(AFFINITIES)
    assert_type(table, Array)
    assert_type(segment.decode_affinities(codes, table), Array)
    assert_type(segment.slice_watershed(AFFINITIES, boundary_threshold=0.4), Array)
    assert_type(segment.seeded_slices(AFFINITIES, "grid-4"), Array)
    assert_type(segment.flood(AFFINITIES[0], LABELS), Array)
    assert_type(segment.mutex_watershed(AFFINITIES, [(-1, 0, 0), (0, -1, 0), (0, 0, -2)], attractive=2), Array)
    assert_type(segment.affinity_components(AFFINITIES, 0.9), Array)
    return fragments


def use_merges(fragments: Array, folder: Path) -> segment.MergeTree:
    statistic = segment.parse_statistic("aff85_his256")
    assert_type(statistic, segment.Statistic)
    graph = segment.region_graph(fragments, AFFINITIES, statistic=statistic, place=segment.Place())
    assert_type(graph, segment.RegionGraph)
    assert_type(segment.pool_graphs([graph]), segment.RegionGraph)
    run = segment.Agglomeration(graph, statistic)
    run.advance(0.5)
    assert_type(run.tree(), segment.MergeTree)
    tree = segment.agglomerate(graph, statistic)
    assert_type(tree, segment.MergeTree)
    assert_type(segment.size_linkage(graph, 20, 0.3), segment.MergeTree)
    assert_type(segment.cut(fragments, tree, 0.5), Array)
    assert_type(segment.cut(fragments, tree, [0.4, 0.5]), list[Array])
    assert_type(segment.sweep(fragments, tree, [0.4, 0.5]), Iterator[tuple[float, Array]])
    segment.write_tree(folder / "tree.h5", tree)
    segment.write_edits(folder / "edits.csv", [segment.Edit("drop", (1, 2, 3))])
    assert_type(segment.read_edits(folder / "edits.csv"), list[segment.Edit])
    assert_type(segment.has_tree(folder / "tree.h5"), bool)
    assert_type(segment.read_tree(folder / "tree.h5"), segment.MergeTree)
    return tree


def use_skeletons(folder: Path) -> None:
    written = segment.write_skeletons(folder / "skeletons", segment.skeletonize(LABELS, RESOLUTION), "precomputed")
    assert_type(written, Path)
    assert_type(segment.read_skeletons(written), dict[int, segment.Skeleton])


def use_labels() -> None:
    labels = segment.segment(AFFINITIES, 0.5, low=0.1, high=0.999)
    assert_type(labels, Array)
    whole = segment.Segmentation(AFFINITIES, low=0.1, high=0.999, statistic="max")
    assert_type(whole.fragments, Array)
    assert_type(whole.graph, segment.RegionGraph)
    assert_type(whole.tree, segment.MergeTree)
    assert_type(whole.labels(0.4, dust_size=5), Array)
    assert_type(whole.explain((2, 3, 4), 0.4), segment.Explanation)
    assert_type(segment.apply_edits(whole, whole.labels(0.4), 0.4, []), Array)
    assert_type(segment.find_doubts(whole, 0.4, 1e-6)[0], segment.Doubts)
    assert_type(segment.merge_small(labels, AFFINITIES, 10), Array)
    assert_type(segment.remove_small(labels, 10), Array)
    assert_type(segment.boundary_threshold(labels, AFFINITIES, 0.2), Array)
    assert_type(segment.link_sections(labels, AFFINITIES, segment.LinkRule(iou=0.4)), Array)
    assert_type(segment.merge_faces(labels[0], labels[1]), Joined)
    assert_type(segment.join_pairs(np.array([[1, 2]], np.uint64)), Joined)
    assert_type(segment.relabel(labels), tuple[Array, Array])
    assert_type(segment.remap(labels, {1: 2}, missing="keep"), Array)
    assert_type(segment.unique(labels), Array)
    assert_type(segment.unique(labels, counts=True), tuple[Array, Array])
    assert_type(segment.mask_out(labels, [1]), Array)
    assert_type(segment.connected_components(labels), Array)
    assert_type(segment.connected_components(labels, 26, count=True), tuple[Array, int])
    assert_type(segment.distance_transform(labels, RESOLUTION), Array)
    assert_type(segment.signed_distance(labels == 1), Array)
    assert_type(segment.dilate(labels, (1, 3, 3)), Array)
    assert_type(segment.erode(labels, 3), Array)
    assert_type(segment.fill_holes(labels == 1), Array)
    assert_type(segment.polarity_instances(AFFINITIES, 0.5, 8), Array)
    assert_type(segment.partner_instances(np.zeros((6, 4, 8, 8), np.float32), RESOLUTION), Array)
    assert_type(segment.contour_instances(AFFINITIES, remove_size=4), Array)
    sides = (np.arange(LABELS.size).reshape(LABELS.shape) % 3).astype(np.uint32)
    found = segment.partners(LABELS, sides, resolution=RESOLUTION)
    assert_type(found, segment.Partners)
    assert_type(found.sites, Array)
    assert_type(segment.connections(found), segment.Connections)
    assert_type(segment.skeleton_volume(LABELS, RESOLUTION), Array)
    for label, _ in segment.skeletonize_boxes(LABELS, RESOLUTION, segment.label_statistics(LABELS)):
        print(label + 1)
    for skeleton in segment.skeletonize(LABELS, RESOLUTION).values():
        assert_type(skeleton, segment.Skeleton)
        assert_type(skeleton.length, float)


def use_objects(folder: Path) -> None:
    for found in segment.mesh(LABELS, RESOLUTION, ids=[1, 2], error=4.0).values():
        assert_type(found, segment.Mesh)
        assert_type(found.volume, float)
        assert_type(found.vertices, Array)
        assert_type(segment.simplify_mesh(found, 20.0), segment.Mesh)
        segment.write_mesh(folder / "one.ply", found)
    table = segment.label_statistics(LABELS)
    assert_type(table, segment.LabelStatistics)
    assert_type(table.centroids, Array)
    assert_type(segment.pool_statistics([table]), segment.LabelStatistics)


def use_decode(folder: Path) -> None:
    with emcore.create_volume(folder / "made_prediction.h5:main", AFFINITIES.shape, np.float32,
                              attributes={"offsets": [[-1, 0, 0], [0, -1, 0], [0, 0, -1]]}) as out:
        out[...] = AFFINITIES
    prediction = emcore.open_volume(folder / "made_prediction.h5")
    stored = decode.decode(prediction, AffinityDecode(low=0.1), folder / "made_labels.h5")
    assert_type(stored, Path)
    assert_type(decode.recut(stored, 0.4, folder / "other_labels.h5"), Path)


def use_metrics(fragments: Array, tree: segment.MergeTree) -> None:
    table = metrics.contingency(LABELS, fragments, ignore_truth=(0,))
    assert_type(table, metrics.Contingency)
    assert_type(metrics.pool([table, table], same_objects=False), metrics.Contingency)
    assert_type(metrics.voi(table), Voi)
    assert_type(metrics.rand(table, convention="skimage"), Rand)
    assert_type(metrics.cremi_score(table), float)
    assert_type(metrics.foreground_restricted(table), ForegroundRestricted)
    assert_type(metrics.overlap_indices(table), OverlapIndices)
    assert_type(metrics.threshold_curve(fragments, tree, LABELS), ThresholdCurve)
    assert_type(metrics.fold(table, tree), ThresholdCurve)
    assert_type(metrics.match_instances(table, 0.5), Matching)
    assert_type(metrics.average_precision(table), AveragePrecision)
    assert_type(metrics.synapse_f1(table), SynapseF1)
    assert_type(metrics.neuron_border_mask(LABELS, RESOLUTION, 10.0), NDArray[np.bool_])
    assert_type(metrics.box_border_mask(LABELS, 1), NDArray[np.bool_])
    assert_type(metrics.clefts(LABELS == 1, LABELS == 2, RESOLUTION), Clefts)
    assert_type(metrics.confusion(LABELS == 1, AFFINITIES[0]), Confusion)
    assert_type(metrics.jaccard(LABELS == 1, AFFINITIES[0]), float)
    assert_type(metrics.dice(LABELS == 1, AFFINITIES[0], threshold=0.7), float)
    assert_type(metrics.accuracy(LABELS == 1, AFFINITIES[0]), float)
    assert_type(metrics.edge_scores([[1, 2]], [[1, 2]]), list[EdgeScore])
    assert_type(metrics.matched_ids(table), dict[int, int])
    places = np.array([[0.0, 0.0, 0.0], [60.0, 8.0, 8.0]])
    assert_type(metrics.labels_at(LABELS, places, RESOLUTION), Array)
    assert_type(metrics.run_length([1, 1], [3, 3], [[0, 1]], [30.0]), RunLength)
    assert_type(metrics.run_length_curve([1, 1], [3, 3], [[0, 1]], [30.0], tree), metrics.RunLengthCurve)
    assert_type(metrics.skeleton_voi([1, 1, 2], [3, 3, 4]), Voi)
    pairs = np.array([[[0.0, 0.0, 0.0], [90.0, 8.0, 8.0]]])
    assert_type(metrics.synaptic_partners(pairs, pairs, LABELS, RESOLUTION), PartnersF1)


def use_net(checkpoints: Sequence[Path], folder: Path) -> None:
    for path in checkpoints:
        assert_type(emcore.load_model(path), torch.nn.Module)
    net = torch.nn.Conv3d(1, 2, 3, padding=1)
    assert_type(emcore.predict(net, LABELS.astype(np.uint8), window=(4, 8, 8)), Array | Path)
    assert_type(emcore.__version__, str)


def use_all(folder: Path, checkpoints: Sequence[Path] = ()) -> None:
    use_volumes(folder)
    fragments = use_fragments()
    use_metrics(fragments, use_merges(fragments, folder))
    use_labels()
    use_objects(folder)
    use_skeletons(folder)
    use_decode(folder)
    use_net(checkpoints, folder)
