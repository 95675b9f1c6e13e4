"""Limits that hold over sites: homes, grants, tallies, and what a request costs. Pure."""
