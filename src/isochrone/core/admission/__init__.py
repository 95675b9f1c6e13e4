"""Whether a request may enter: limits of its key, and the budget for trying once more."""
