"""Whole frames on a GPU: network, kernels and results."""
