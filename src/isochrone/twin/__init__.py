"""The digital twin: virtual time, ports in memory and whole systems run from a seed."""
