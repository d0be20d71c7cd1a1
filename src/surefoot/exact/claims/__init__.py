"""The essay, claim by claim, in its order."""
