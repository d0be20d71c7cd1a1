"""The papers' formulas as pure functions of arrays."""
