"""Countdown: reach a number with three or four others."""
