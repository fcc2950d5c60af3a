"""Public cine data sets: one adapter per module, named as the data set."""
