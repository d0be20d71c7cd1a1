"""Several devices, processes or machines; the only user of Ray."""
