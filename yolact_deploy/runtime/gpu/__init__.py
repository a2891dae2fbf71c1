"""Batches on a GPU, from pixels to detections: network, kernels and results."""
