"""Reading what people call a checkpoint: weights, their trainer, the spec they belong to."""
