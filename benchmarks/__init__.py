"""Experiments of ours: long, seeded, and not part of the library."""
