"""Checkpoints of other trainers of YOLACT, as checkpoints of the original: names mapped, weights in its order."""
