"""The CUDA driver, through whichever package is installed."""
