"""Acoustics: scatterers to beam space to images."""
