"""Checkpoints of other trainers, under the original's names."""
