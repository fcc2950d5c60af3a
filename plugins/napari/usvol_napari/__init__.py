"""Ultrasound volumes and cines in napari: read, analyse with usvol's tasks, correct, measure, save.

Not a medical device.
"""
