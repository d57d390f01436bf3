"""Pages that stand alone: one HTML file each, no network, and parts that every page shares."""
