"""Tasks: examples, verifiers and feedback."""
