"""Calls of tools with known answers."""
