"""Sampling engines, and the verification of their completions."""
