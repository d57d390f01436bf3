"""The loop, one optimiser step, checkpoints."""
