"""Widgets of the plugin, one to a file. Numbers come from usvol; nothing here computes any."""
