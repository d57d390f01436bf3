"""Metrics to other programs, alarms, progress."""
