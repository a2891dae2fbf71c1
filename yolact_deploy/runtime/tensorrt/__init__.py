"""TensorRT and TensorRT-RTX plans."""
