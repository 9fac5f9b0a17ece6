from emcore.prediction.streaming import predict as predict
