"""Reading checkpoints, the PyTorch YOLACT, ONNX export, precision and parity."""
