"""Disk port on files."""
