"""Fakes of the ports, each held to the contract suite of its live adapter."""
