"""Everything for cine clips: networks, tasks, data sets, phantoms and weights."""
