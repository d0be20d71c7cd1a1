"""Policies for machines that have NumPy alone."""
