"""Look at runs: compare, probe, report, and their pictures."""
