"""Simulated cines with exact truth: one anatomy per module."""
