"""Tasks for volumes, one per file."""
