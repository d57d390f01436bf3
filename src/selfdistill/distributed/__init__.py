"""Ranks, sharding, and processes that are launched and stopped together."""
