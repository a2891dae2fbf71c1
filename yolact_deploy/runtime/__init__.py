"""Running exported models: images in, detections out."""
