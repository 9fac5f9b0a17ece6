"""emcore: from volumes of electron-microscope images to neurons and synapses.

Importing this package is cheap: each public name is fetched from its module when it is first used,
so reading volumes, decoding and scoring never import torch.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "open_volume": "emcore.volumes",
    "create_volume": "emcore.volumes",
    "load_model": "emcore.systems.checkpoints",
    "predict": "emcore.prediction",
    "segment": "emcore",
    "metrics": "emcore",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'emcore' has no attribute {name!r}; it offers {', '.join(_HOME)}")
    if _HOME[name] == "emcore":
        return import_module(f"emcore.{name}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
