"""Accuracy with confidence intervals, and the gap between teacher and student."""
