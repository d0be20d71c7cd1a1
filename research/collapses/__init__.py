"""Runs planted to collapse, and healthy ones beside them, to calibrate warnings and remedies."""
