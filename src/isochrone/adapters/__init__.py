"""Live implementations of the ports, one folder per outside thing."""
