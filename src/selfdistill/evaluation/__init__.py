"""Accuracy with intervals, and the gap between teacher and student."""
