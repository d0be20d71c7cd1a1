"""Notebooks of measurements: what a default or a warning rests on."""
