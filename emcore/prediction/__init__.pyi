from emcore.prediction.streaming import Output as Output
from emcore.prediction.streaming import predict as predict
