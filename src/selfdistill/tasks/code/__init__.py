"""Code that is judged by its tests."""
