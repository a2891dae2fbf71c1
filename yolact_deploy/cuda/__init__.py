"""The GPU kernels and how to launch them. Nothing here needs CUDA: `specialization` and `launches` only compute."""
