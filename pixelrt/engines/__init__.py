"""ONNX graphs to TensorRT plans. Imports neither ``export`` nor ``runtime``."""
