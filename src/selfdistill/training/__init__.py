"""The training loop, one training step, checkpoints."""
