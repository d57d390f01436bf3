"""The schema of a run's config, without torch."""
