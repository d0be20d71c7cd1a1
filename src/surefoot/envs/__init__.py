"""Environments: from an id to a vector of them that keeps one contract."""
