"""FP16 and INT8 written into the ONNX, calibrated and gated."""
