"""One graph from an image's bytes to finished detections."""
