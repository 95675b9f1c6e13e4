"""What the shell must supply, one Protocol a file; each has a live adapter and a twin fake."""
