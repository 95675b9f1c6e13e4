"""Typed messages that cross a process: versioned, without logic."""
