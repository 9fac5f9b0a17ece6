"""What Neuroglancer is told of a view: its layers, and the properties of the segments."""

from typing import Any

import numpy as np

from emcore.png import colour_labels
from emcore.report.scene import Neurons
from emcore.volumes import Volume
from emcore.volumes.precomputed_writing import properties
from emcore.volumes.serve import SERVED_AT

SHADER = """void main() {
  setColor(vec3(1.0, 0.75, 0.1));
  setEndpointMarkerSize(7.0, 4.0);
  setEndpointMarkerColor(vec3(1.0, 0.75, 0.1), vec3(1.0, 1.0, 1.0));
  setLineWidth(2.0);
}
"""
COLUMNS = {  # what a neuron has, in words
    "outgoing": "synapses in which the neuron is presynaptic",
    "incoming": "synapses in which the neuron is postsynaptic",
    "undirected": "synapses of which nobody knows the direction",
    "partners": "neurons that a synapse joins to it",
}


def state_of(labels: Volume, shown: np.ndarray, with_image: bool, with_synapses: bool) -> dict[str, Any]:
    """The state that opens a folder of volumes where python -m emcore serve has it by default.

    shown: the neurons that are selected, in the colours that labels have in all pages.
    """
    unit, start = np.array(labels.resolution), np.rint(np.array(labels.offset) / labels.resolution)
    middle = start + np.array(labels.shape) / 2
    extent = np.array(labels.shape) * unit
    colours = {str(label): "#" + bytes(colour).hex()
               for label, colour in zip(shown.tolist(), colour_labels(shown).tolist())}
    layers: list[dict[str, Any]] = []
    if with_image:
        layers.append({"type": "image", "name": "image", "source": f"precomputed://{SERVED_AT}/image.precomputed"})
    layers.append({"type": "segmentation", "name": "neurons", "segments": list(colours), "segmentColors": colours,
                   "source": f"precomputed://{SERVED_AT}/labels.precomputed"})
    if with_synapses:
        layers.append({"type": "annotation", "name": "synapses", "source": f"precomputed://{SERVED_AT}/synapses",
                       "linkedSegmentationLayer": {"pre": "neurons", "post": "neurons"},
                       "filterBySegmentation": ["pre", "post"], "shader": SHADER})
    across = float(extent.max() / unit.min())
    return {"dimensions": {axis: [size / 1e9, "m"] for axis, size in zip("xyz", unit[::-1].tolist())},
            "position": middle[::-1].tolist(), "crossSectionScale": across / 400, "projectionScale": 1.5 * across,
            "layers": layers,
            "selectedLayer": {"layer": "neurons", "visible": True}, "layout": "4panel"}


def properties_of(neurons: Neurons, wired: bool) -> dict[str, Any]:
    """The table of sizes, and of synapses where there is a wiring diagram."""
    table = properties(neurons.ids, neurons.voxels)
    if wired:
        table["inline"]["properties"] += [
            {"id": name, "type": "number", "data_type": "uint32", "description": text,
             "values": getattr(neurons, name).tolist()}
            for name, text in COLUMNS.items() if name != "undirected" or neurons.undirected.any()]
    return table
