"""emcore: from volumes of electron-microscope images to neurons and synapses.

Importing this package is cheap: each public name of __init__.pyi is fetched from its module when it is first used,
so reading volumes, decoding and scoring never import torch.
"""

from emcore.lazy import face

__version__ = "0.1.0"
__all__, __getattr__, __dir__ = face(__name__)
