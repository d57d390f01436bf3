"""Prompts and references without a verifier."""
