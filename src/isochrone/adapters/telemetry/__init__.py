"""What monitoring systems get of a gateway: spans over OTLP, and what its process uses."""
