"""What each public function costs: nanoseconds of one core and peak bytes above the inputs, the result included.

    python -m bench.costs [--size 128] [--labels FILE] [NAME ...]

These are the figures of the sections Cost of the docstrings. A cost per voxel is that of volumes of real neurons: pass
their labels. The time is CPU time, so other work on the machine changes it little.
"""

import argparse
import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.affinities import load_labels, make_affinities
from bench.compare import measure
from emcore import decode, metrics, segment, volumes
from emcore.settings.decode import AffinityDecode
from emcore.threads import thread_count

RESOLUTION = (40.0, 16.0, 16.0)
REPEATS = 2


class Inputs:
    """What the functions take, made when a row first asks for it; every function may use one thread alone."""

    def __init__(self, path: str | None, size: int, folder: Path):
        self.neurons = np.ascontiguousarray(load_labels(path, size)).astype(np.uint32)
        self.folder = folder

    @functools.cached_property
    def affs(self) -> np.ndarray:
        return make_affinities(self.neurons)

    @functools.cached_property
    def codes(self) -> np.ndarray:
        return segment.encode_affinities(self.affs)[0]

    @functools.cached_property
    def mask(self) -> np.ndarray:
        return segment.erode(self.neurons, (1, 3, 3)) > 0

    @functools.cached_property
    def fragments(self) -> np.ndarray:
        return segment.watershed(self.affs, 0.1, 0.999)

    @functools.cached_property
    def graph(self) -> segment.RegionGraph:
        return segment.region_graph(self.fragments, self.affs)

    @functools.cached_property
    def tree(self) -> segment.MergeTree:
        return segment.agglomerate(self.graph)

    @functools.cached_property
    def labels(self) -> np.ndarray:
        return segment.cut(self.fragments, self.tree, 0.5)

    @functools.cached_property
    def whole(self) -> segment.Segmentation:
        made = segment.Segmentation(self.affs, low=0.1, high=0.999, threads=1)
        made.labels(0.5)
        return made

    @functools.cached_property
    def table(self) -> metrics.Contingency:
        return metrics.contingency(self.neurons, self.labels)

    @functools.cached_property
    def fragment_table(self) -> metrics.Contingency:
        return metrics.contingency(self.neurons, self.fragments)

    @functools.cached_property
    def sides(self) -> np.ndarray:
        """Synapses as polarity_instances numbers them, in cubes of 12 voxels at every 48th voxel."""
        z, y, x = np.indices(self.neurons.shape, np.int32, sparse=True)
        number = (z // 48 * 100 + y // 48) * 100 + x // 48
        inside = (z % 48 < 12) & (y % 48 < 12) & (x % 48 < 12)
        return np.where(inside, 2 * number + 1 + (x % 48 >= 6), 0).astype(np.uint32)

    @functools.cached_property
    def mesh(self) -> segment.Mesh:
        """The largest surface of at most 50,000 triangles."""
        found = segment.mesh(self.neurons[:128, :128, :128], RESOLUTION)
        return max((one for one in found.values() if len(one.faces) <= 50_000), key=lambda one: len(one.faces))

    @functools.cached_property
    def nodes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids of a million nodes of long skeletons, their edges and lengths."""
        skeletons = 1 + np.arange(1_000_000) // 500
        edges = np.stack([np.arange(999_999), np.arange(1, 1_000_000)], 1)
        edges = edges[skeletons[edges[:, 0]] == skeletons[edges[:, 1]]]
        return skeletons, edges, np.full(len(edges), 30.0)

    @functools.cached_property
    def fragments_at(self) -> np.ndarray:
        return self.fragments.ravel()[np.linspace(0, self.fragments.size - 1, 1_000_000).astype(int)]

    @functools.cached_property
    def sites(self) -> np.ndarray:
        """Two hundred pairs of places in nm."""
        random = np.random.default_rng(0)
        first = random.uniform(0, 0.99, (200, 1, 3)) * np.multiply(self.neurons.shape, RESOLUTION)
        return np.concatenate([first, first], 1)

    def file(self, name: str, array: np.ndarray, **attributes: object) -> Path:
        path = self.folder / name
        if not path.exists():
            with volumes.create_volume(path, array.shape, array.dtype, RESOLUTION, attributes=attributes) as out:
                out[...] = array
        return path


def agglomerated(inputs: Inputs) -> segment.MergeTree:
    run = segment.Agglomeration(inputs.graph)
    run.advance(threads=1)
    return run.tree()


def decoded(inputs: Inputs) -> Path:
    offsets = [[-1, 0, 0], [0, -1, 0], [0, 0, -1]]
    prediction = volumes.open_volume(inputs.file("prediction.h5", inputs.affs, offsets=offsets))
    return decode.decode(prediction, AffinityDecode(low=0.1, high=0.999), inputs.folder / "decoded.h5")


def written(inputs: Inputs) -> None:
    with volumes.create_volume(inputs.folder / "written.h5", inputs.neurons.shape, np.uint32) as out:
        for z in range(0, len(inputs.neurons), 16):
            out[z : z + 16] = inputs.neurons[z : z + 16]


def linkable(inputs: Inputs) -> np.ndarray:
    return segment.connected_components(inputs.neurons, 4)


# name -> (what a unit is, the number of units, inputs to make first, the call)
Work = tuple[str, Callable[[Inputs], float], Callable[[Inputs], object], Callable[[Inputs], object]]


def voxels(inputs: Inputs) -> float:
    return inputs.neurons.size


def edges(inputs: Inputs) -> float:
    return len(inputs.graph.u)


WORK: dict[str, Work] = {
    "segment.segment": ("voxel", voxels, lambda i: i.affs,
                        lambda i: segment.segment(i.affs, threads=1)),
    "segment.Segmentation.labels": ("voxel", voxels, lambda i: i.whole, lambda i: i.whole.labels(0.4)),
    "segment.watershed": ("voxel", voxels, lambda i: i.affs,
                          lambda i: segment.watershed(i.affs, threads=1)),
    "segment.face_forest": ("voxel", voxels, lambda i: i.affs, lambda i: segment.face_forest(i.affs, threads=1)),
    "segment.slice_watershed": ("voxel", voxels, lambda i: i.affs,
                                lambda i: segment.slice_watershed(i.affs, threads=1)),
    "segment.seeded_slices": ("voxel", voxels, lambda i: i.affs,
                              lambda i: segment.seeded_slices(i.affs, threads=1)),
    "segment.flood": ("voxel", voxels, lambda i: i.affs,
                      lambda i: segment.flood(1 - i.affs[1], np.where(i.mask, i.neurons, 0))),
    "segment.mutex_watershed": ("voxel", voxels, lambda i: i.affs, lambda i: segment.mutex_watershed(
        np.concatenate([i.affs, i.affs]), [(-1, 0, 0), (0, -1, 0), (0, 0, -1), (-2, 0, 0), (0, -8, 0), (0, 0, -8)],
        threads=1)),
    "segment.affinity_components": ("voxel", voxels, lambda i: i.affs,
                                    lambda i: segment.affinity_components(i.affs, threads=1)),
    "segment.region_graph": ("voxel", voxels, lambda i: i.fragments,
                             lambda i: segment.region_graph(i.fragments, i.affs, threads=1)),
    "segment.pool_graphs": ("edge", lambda i: 2 * edges(i), lambda i: i.graph,
                            lambda i: segment.pool_graphs([i.graph, i.graph])),
    "segment.agglomerate": ("edge", edges, lambda i: i.graph, lambda i: segment.agglomerate(i.graph, threads=1)),
    "segment.Agglomeration": ("edge", edges, lambda i: i.graph, agglomerated),
    "segment.size_linkage": ("edge", edges, lambda i: i.graph, lambda i: segment.size_linkage(i.graph, 100)),
    "segment.cut": ("voxel", voxels, lambda i: i.tree, lambda i: segment.cut(i.fragments, i.tree, 0.5, threads=1)),
    "segment.sweep": ("voxel", lambda i: 3 * voxels(i), lambda i: i.tree, lambda i: [
        None for _ in segment.sweep(i.fragments, i.tree, [0.3, 0.5, 0.7], threads=1)]),
    "segment.write_tree": ("merge", lambda i: len(i.tree.a), lambda i: i.tree,
                           lambda i: segment.write_tree(i.file("tree.h5", i.neurons[:1]), i.tree)),
    "segment.read_tree": ("merge", lambda i: len(i.tree.a),
                          lambda i: segment.write_tree(i.file("stored.h5", i.neurons[:1]), i.tree),
                          lambda i: segment.read_tree(i.folder / "stored.h5")),
    "segment.boundary_threshold": ("voxel", voxels, lambda i: i.labels,
                                   lambda i: segment.boundary_threshold(i.labels, i.affs, 0.3, threads=1)),
    "segment.merge_small": ("voxel", voxels, lambda i: i.labels,
                            lambda i: segment.merge_small(i.labels, i.affs, 100, threads=1)),
    "segment.remove_small": ("voxel", voxels, lambda i: i.labels,
                             lambda i: segment.remove_small(i.labels, 100, threads=1)),
    "segment.link_sections": ("voxel", voxels, linkable, lambda i: segment.link_sections(linkable(i), threads=1)),
    "segment.merge_faces": ("pixel", lambda i: i.neurons[0].size, lambda i: i.labels,
                            lambda i: segment.merge_faces(i.labels[0], i.neurons[0])),
    "segment.join_pairs": ("pair", edges, lambda i: i.graph,
                           lambda i: segment.join_pairs(np.stack([i.graph.u, i.graph.v], 1).astype(np.uint64))),
    "segment.connected_components": ("voxel", voxels, lambda i: i,
                                     lambda i: segment.connected_components(i.neurons, threads=1)),
    "segment.distance_transform": ("voxel", voxels, lambda i: i,
                                   lambda i: segment.distance_transform(i.neurons, RESOLUTION, threads=1)),
    "segment.signed_distance": ("voxel", voxels, lambda i: i.mask,
                                lambda i: segment.signed_distance(i.mask, RESOLUTION, threads=1)),
    "segment.dilate": ("voxel", voxels, lambda i: i, lambda i: segment.dilate(i.neurons, threads=1)),
    "segment.erode": ("voxel", voxels, lambda i: i, lambda i: segment.erode(i.neurons, threads=1)),
    "segment.fill_holes": ("voxel", voxels, lambda i: i.mask, lambda i: segment.fill_holes(i.mask, threads=1)),
    "segment.relabel": ("voxel", voxels, lambda i: i.labels, lambda i: segment.relabel(i.labels, threads=1)),
    "segment.remap": ("voxel", voxels, lambda i: i, lambda i: segment.remap(i.neurons, {1: 2}, missing="keep",
                                                                          threads=1)),
    "segment.unique": ("voxel", voxels, lambda i: i, lambda i: segment.unique(i.neurons, True, threads=1)),
    "segment.mask_out": ("voxel", voxels, lambda i: i, lambda i: segment.mask_out(i.neurons, [1, 2], threads=1)),
    "segment.label_statistics": ("voxel", voxels, lambda i: i, lambda i: segment.label_statistics(i.neurons,
                                                                                                threads=1)),
    "segment.polarity_instances": ("voxel", voxels, lambda i: i.affs,
                                   lambda i: segment.polarity_instances(1 - i.affs, threads=1)),
    "segment.contour_instances": ("voxel", voxels, lambda i: i.affs,
                                  lambda i: segment.contour_instances(i.affs * np.float32(1.2), threads=1)),
    "segment.partners": ("voxel", voxels, lambda i: i.sides,
                         lambda i: segment.partners(i.neurons, i.sides, resolution=RESOLUTION)),
    "segment.mesh": ("voxel", voxels, lambda i: i, lambda i: segment.mesh(i.neurons, RESOLUTION, threads=1)),
    "segment.simplify_mesh": ("triangle", lambda i: len(i.mesh.faces), lambda i: i.mesh,
                              lambda i: segment.simplify_mesh(i.mesh, 40)),
    "segment.write_mesh": ("triangle", lambda i: len(i.mesh.faces), lambda i: i.mesh,
                           lambda i: segment.write_mesh(i.folder / "one.ply",
                                                        i.mesh)),
    "segment.encode_affinities": ("value", lambda i: i.affs.size, lambda i: i.affs,
                                  lambda i: segment.encode_affinities(i.affs, threads=1)),
    "segment.decode_affinities": ("value", lambda i: i.affs.size, lambda i: i.codes,
                                  lambda i: segment.decode_affinities(i.codes)),
    "segment.skeletonize": ("voxel", voxels, lambda i: i,
                            lambda i: segment.skeletonize(i.neurons, RESOLUTION, threads=1)),
    "segment.skeleton_volume": ("voxel", voxels, lambda i: i,
                                lambda i: segment.skeleton_volume(i.neurons, RESOLUTION, threads=1)),
    "metrics.contingency": ("voxel", voxels, lambda i: i.labels,
                            lambda i: metrics.contingency(i.neurons, i.labels, threads=1)),
    "metrics.pool": ("pair", lambda i: 2 * len(i.fragment_table.counts), lambda i: i.fragment_table,
                     lambda i: metrics.pool([i.fragment_table, i.fragment_table])),
    "metrics.voi": ("pair", lambda i: len(i.fragment_table.counts), lambda i: i.fragment_table,
                    lambda i: metrics.voi(i.fragment_table.ignoring((0,)))),
    "metrics.rand": ("pair", lambda i: len(i.fragment_table.counts), lambda i: i.fragment_table,
                     lambda i: metrics.rand(i.fragment_table.ignoring((0,)))),
    "metrics.cremi_score": ("pair", lambda i: len(i.fragment_table.counts), lambda i: i.fragment_table,
                            lambda i: metrics.cremi_score(i.fragment_table.ignoring((0,)))),
    "metrics.foreground_restricted": ("pair", lambda i: len(i.fragment_table.counts), lambda i: i.fragment_table,
                                      lambda i: metrics.foreground_restricted(i.fragment_table.ignoring((0,)))),
    "metrics.overlap_indices": ("pair", lambda i: len(i.fragment_table.counts), lambda i: i.fragment_table,
                                lambda i: metrics.overlap_indices(i.fragment_table.ignoring(()))),
    "metrics.matched_ids": ("pair", lambda i: len(i.fragment_table.counts), lambda i: i.fragment_table,
                            lambda i: metrics.matched_ids(i.fragment_table)),
    "metrics.fold": ("merge", lambda i: len(i.tree.a), lambda i: (i.tree, i.fragment_table),
                     lambda i: metrics.fold(i.fragment_table, i.tree)),
    "metrics.threshold_curve": ("voxel", voxels, lambda i: i.tree,
                                lambda i: metrics.threshold_curve(i.fragments, i.tree, i.neurons, threads=1)),
    "metrics.match_instances": ("pair", lambda i: len(i.fragment_table.counts), lambda i: i.fragment_table,
                                lambda i: metrics.match_instances(i.fragment_table)),
    "metrics.average_precision": ("pair", lambda i: len(i.fragment_table.counts), lambda i: i.fragment_table,
                                  lambda i: metrics.average_precision(i.fragment_table)),
    "metrics.synapse_f1": ("pair", lambda i: len(i.table.counts), lambda i: i.table,
                           lambda i: metrics.synapse_f1(i.table)),
    "metrics.neuron_border_mask": ("voxel", voxels, lambda i: i,
                                   lambda i: metrics.neuron_border_mask(i.neurons, RESOLUTION, threads=1)),
    "metrics.box_border_mask": ("voxel", voxels, lambda i: i,
                                lambda i: metrics.box_border_mask(i.neurons, 1, threads=1)),
    "metrics.clefts": ("voxel", voxels, lambda i: i.sides, lambda i: metrics.clefts(
        i.sides, np.roll(i.sides, 2, 2), RESOLUTION, threads=1)),
    "metrics.confusion": ("voxel", voxels, lambda i: i.mask, lambda i: metrics.confusion(i.mask, i.affs[0])),
    "metrics.labels_at": ("place", lambda i: 400, lambda i: i.sites,
                          lambda i: metrics.labels_at(i.neurons, i.sites.reshape(-1, 3), RESOLUTION)),
    "metrics.run_length": ("node", lambda i: 1e6, lambda i: (i.nodes, i.fragments_at),
                           lambda i: metrics.run_length(i.nodes[0], i.fragments_at, i.nodes[1], i.nodes[2])),
    "metrics.skeleton_voi": ("node", lambda i: 1e6, lambda i: (i.nodes, i.fragments_at),
                             lambda i: metrics.skeleton_voi(i.nodes[0], i.fragments_at)),
    "metrics.run_length_curve": ("node", lambda i: 1e6, lambda i: (i.nodes, i.fragments_at, i.tree),
                                 lambda i: metrics.run_length_curve(i.nodes[0], i.fragments_at, *i.nodes[1:], i.tree)),
    "metrics.synaptic_partners": ("pair", lambda i: 200, lambda i: i.sites,
                                  lambda i: metrics.synaptic_partners(i.sites, i.sites, i.neurons, RESOLUTION)),
    "metrics.edge_scores": ("synapse", lambda i: 1e5, lambda i: i.nodes,
                            lambda i: metrics.edge_scores(i.nodes[1][:100_000], i.nodes[1][:100_000])),
    "decode.decode": ("voxel", voxels, lambda i: i.affs, decoded),
    "decode.recut": ("voxel", voxels, decoded,
                     lambda i: decode.recut(i.folder / "decoded.h5", 0.3, i.folder / "again.h5")),
    "volumes.create_volume": ("voxel", voxels, lambda i: i, written),
    "volumes.open_volume": ("voxel", voxels, lambda i: i.file("neurons.h5", i.neurons),
                            lambda i: volumes.open_volume(i.folder / "neurons.h5")[...]),
}


def cost(function: Callable[[], object]) -> tuple[float, float]:
    """The least CPU seconds of some calls after one that is not counted, and the largest peak in bytes."""
    seconds: list[float] = []

    def timed() -> object:
        start = time.process_time()
        result = function()
        seconds.append(time.process_time() - start)
        return result

    function()
    peak = max(measure(timed)[1] for _ in range(REPEATS))
    return min(seconds), peak * 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--labels", help="HDF5 file with a dataset labels (z, y, x); synthetic by default")
    parser.add_argument("names", nargs="*", help="functions; by default all")
    arguments = parser.parse_args()
    print(f"{thread_count(None)} cores; CPU time, peak memory above the inputs")
    with tempfile.TemporaryDirectory() as folder:
        inputs = Inputs(arguments.labels, arguments.size, Path(folder))
        for name in arguments.names or WORK:
            unit, count, prepare, call = WORK[name]
            prepare(inputs)
            units = count(inputs)
            seconds, peak = cost(lambda call=call: call(inputs))
            print(f"{name:<34}{1e9 * seconds / units:>12.2f} ns{peak / units:>10.2f} bytes a {unit}"
                  f"   ({seconds:.3f} s, {peak / 2**20:.0f} MiB, {units:.0f})", flush=True)


if __name__ == "__main__":
    main()
