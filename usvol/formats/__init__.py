"""Readers, one file per format: each exports ``NAME``, ``sniff``, ``probe`` and ``read``."""
