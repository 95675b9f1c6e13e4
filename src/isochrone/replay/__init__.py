"""Replays recorded traffic against a running cloud, from the outside, and says what came of it."""
