"""Building TensorRT and TensorRT-RTX plans from ONNX."""
