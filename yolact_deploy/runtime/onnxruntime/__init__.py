"""Exported models in onnxruntime."""
