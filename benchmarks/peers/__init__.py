"""surefoot against what people would use instead, on the same task, alternating, in one run."""
