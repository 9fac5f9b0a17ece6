"""From affinities and probability maps to labels: Python faces of the kernels, no torch."""

from importlib import import_module

# public name -> the file of this folder that holds it; fetched on first use
_HOME = {
    "watershed": "fragments",
    "encode_affinities": "affinities",
    "decode_affinities": "affinities",
    "Affinities": "affinities",
    "slice_watershed": "slices",
    "seeded_slices": "slices",
    "flood": "slices",
    "region_graph": "graph",
    "RegionGraph": "graph",
    "Place": "graph",
    "pool_graphs": "graph",
    "agglomerate": "agglomeration",
    "Agglomeration": "agglomeration",
    "MergeTree": "merge_tree",
    "cut": "merge_tree",
    "sweep": "merge_tree",
    "write_tree": "storage",
    "has_tree": "storage",
    "read_tree": "storage",
    "size_linkage": "merge_tree",
    "parse_statistic": "statistics",
    "Statistic": "statistics",
    "segment": "segmentation",
    "Segmentation": "segmentation",
    "Explanation": "explain",
    "merge_small": "cleanup",
    "remove_small": "cleanup",
    "boundary_threshold": "cleanup",
    "link_sections": "linking",
    "LinkRule": "linking",
    "merge_faces": "linking",
    "join_pairs": "linking",
    "relabel": "relabeling",
    "remap": "relabeling",
    "unique": "relabeling",
    "mask_out": "relabeling",
    "connected_components": "components",
    "affinity_components": "components",
    "distance_transform": "distance",
    "signed_distance": "distance",
    "mutex_watershed": "mutex",
    "dilate": "morphology",
    "erode": "morphology",
    "fill_holes": "morphology",
    "polarity_instances": "synapses",
    "contour_instances": "contours",
    "skeletonize": "skeletons",
    "skeleton_volume": "skeletons",
    "Skeleton": "skeletons",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'emcore.segment' has no attribute {name!r}; it offers {', '.join(sorted(_HOME))}")
    value = getattr(import_module(f"emcore.segment.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
