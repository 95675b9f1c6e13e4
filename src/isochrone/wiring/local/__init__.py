"""`isochrone up`: a whole cloud on this machine, every part of it a real process."""
