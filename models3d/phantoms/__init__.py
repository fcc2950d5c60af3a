"""Parametric anatomies with exact truth."""
