"""Predicting volumes of any size: windows read with real context, blended, written section by section."""

from emcore.prediction.streaming import predict

__all__ = ["predict"]
