from dataclasses import dataclass

from emcore.engine.mode import fast_precision
from emcore.predict.layout import FORMATS, measure


@dataclass(frozen=True)
class Arithmetic:
    device: str
    precision: str
    layout: str
    compile: bool
def decide(settings, model, windows):
    device = next(model.parameters()).device.type
    precision = fast_precision(settings.train.precision, device)
    layout = settings.infer.layout
    if layout == "auto":
        layout = measure(model, settings.infer.window or settings.data.patch, settings.model.in_channels, precision)["layout"]
    return Arithmetic(device, precision, layout, False)
def comply(a, settings, model):
    return model.to(memory_format=FORMATS[a.layout])
