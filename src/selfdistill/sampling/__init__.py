"""Engines that sample completions, and their verification."""
