"""Everything for volumes: networks, tasks, data sets, phantoms and weights."""
