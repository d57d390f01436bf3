"""Environments of other packages as tasks. Each package is an extra and is imported when its task is built."""
