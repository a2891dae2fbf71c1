"""The PyTorch YOLACT."""
