"""A teacher's translations of the training text."""
