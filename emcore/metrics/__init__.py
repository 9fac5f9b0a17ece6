"""Every published score by its convention, from one table: Numba, no torch."""

from importlib import import_module

# public name -> the file of this folder that holds it; fetched on first use. No file bears the name of a function:
# importing it would hide the function behind the module.
_HOME = {
    "contingency": "tables",
    "Contingency": "tables",
    "pool": "tables",
    "voi": "partitions",
    "rand": "partitions",
    "cremi_score": "partitions",
    "foreground_restricted": "partitions",
    "overlap_indices": "partitions",
    "threshold_curve": "curves",
    "fold": "curves",
    "neuron_border_mask": "borders",
    "box_border_mask": "borders",
    "clefts": "cleft_distances",
    "confusion": "binary",
    "jaccard": "binary",
    "dice": "binary",
    "accuracy": "binary",
    "match_instances": "instances",
    "average_precision": "instances",
    "synapse_f1": "synapses",
    "synaptic_partners": "synapses",
    "labels_at": "points",
    "run_length": "skeletons",
    "skeleton_voi": "skeletons",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'emcore.metrics' has no attribute {name!r}; it offers {', '.join(sorted(_HOME))}")
    value = getattr(import_module(f"emcore.metrics.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
