"""Every figure; the only package that imports matplotlib."""
