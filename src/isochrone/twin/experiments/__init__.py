"""Experiments: what is varied and compared, and what follows from what came out."""
