"""Settings: their defaults, the values allowed, and presets; imports no JAX."""
