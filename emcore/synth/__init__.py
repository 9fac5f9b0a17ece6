"""Synthetic electron microscopy with exact truth: neurons, clefts, polarity, mitochondria, defects on request.

    tissue = synthesize((64, 256, 256), resolution=(30, 6, 6), seed=1)
    tissue.raw, tissue.neuron_ids, tissue.clefts, tissue.polarity
"""

from emcore.synth.layouts import LAYOUTS, main, write_layout
from emcore.synth.synapses import Synapse
from emcore.synth.tissue import Defects, Tissue, synthesize

__all__ = ["LAYOUTS", "Defects", "Synapse", "Tissue", "main", "synthesize", "write_layout"]
