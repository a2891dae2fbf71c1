"""The linter of quantized ONNX graphs."""
