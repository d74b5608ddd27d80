"""The training run: trainer, step, optimiser, schedule, averaging, guard, checkpoints, evaluation."""
