"""Isochrone: one inference cloud over GPU pools in many data centres."""

__version__ = "0.1.0"
