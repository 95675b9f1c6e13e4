"""Judges of a run: what must hold whatever failed, whichever gear of simulation it ran in."""
