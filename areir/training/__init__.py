"""Training: the run, its checkpoints, its batches, and the step of the ensemble."""
