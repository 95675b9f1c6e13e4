"""Composition roots, one per process: the only place that reads settings and picks adapters."""
