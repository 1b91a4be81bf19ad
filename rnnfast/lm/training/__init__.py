"""Training: runs, the trainer, its optimiser, and the report of a run."""
