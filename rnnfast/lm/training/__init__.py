"""Training: runs, the trainer, its optimiser, and what is reported of a run."""
