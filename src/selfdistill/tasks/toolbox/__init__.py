"""Toolbox: a built-in task of tool calls."""
