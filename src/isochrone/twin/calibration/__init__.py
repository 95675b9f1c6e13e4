"""Holds the fast twin against recorded runs of a real cloud: plays them again, fits, and judges."""
