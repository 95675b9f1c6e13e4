"""Compiles residency rules into sets of sites; a missing attribute denies."""
