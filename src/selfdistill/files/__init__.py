"""The files of a run: JSON lines, completions, the folder's lock, and text that is safe to write."""
