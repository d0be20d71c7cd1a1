"""Policies and critics as functions: encoders, heads, spaces, masks, the trained policy."""
