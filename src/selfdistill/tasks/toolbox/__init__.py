"""Toolbox: an embedded world of tool calls."""
