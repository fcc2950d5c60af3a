"""Networks for volumes, one architecture per file."""
