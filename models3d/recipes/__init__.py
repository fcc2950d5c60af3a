"""How the tasks of this package learn."""
