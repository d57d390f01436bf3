"""One completion under several prompts: views, micro-batches, log-probabilities."""
