"""Tasks on cines: one module each, named as the task."""
