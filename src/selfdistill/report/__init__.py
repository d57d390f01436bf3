"""Self-contained HTML pages, one file each without network access, and the parts that all pages share."""
