"""One script a side, run in the side's own virtual environment and asked for rounds of training."""
