"""What one request used: the usage event, how tokens are read, which of two reports wins."""
