"""Counters port on memory that processes share."""
