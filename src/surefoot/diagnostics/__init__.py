"""What an update did: its figures, the lens, warnings, and the guard."""
