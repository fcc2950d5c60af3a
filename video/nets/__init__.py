"""Networks for cines: one architecture per module."""
