"""Settings: what a run can be told, the values allowed, and what works where; imports no JAX."""
