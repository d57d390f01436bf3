"""Helpers of the tests: tiny models and made-up tasks."""
