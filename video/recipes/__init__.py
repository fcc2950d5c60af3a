"""How the tasks of this package learn and are scored: one file per task, exported there as ``TRAINING``."""
