"""Data sets of volumes, one per file."""
