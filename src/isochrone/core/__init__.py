"""Decides. Pure: stdlib, numpy and core itself; no I/O, clock, chance, logging or environment."""
