from emcore import decode as decode
from emcore import metrics as metrics
from emcore import segment as segment
from emcore import volumes as volumes
from emcore.prediction.streaming import predict as predict
from emcore.systems.checkpoints import load_model as load_model
from emcore.volumes import create_volume as create_volume
from emcore.volumes import open_volume as open_volume

__version__: str
