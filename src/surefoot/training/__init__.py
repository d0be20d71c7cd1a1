"""Train a policy: the loop, one iteration of it, and the rollouts it learns from."""
