"""Requests to simulate: when they come, how long they are, what they share, where they enter."""
