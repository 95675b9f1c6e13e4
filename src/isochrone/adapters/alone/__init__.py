"""What stands in for NATS when a gateway runs alone: a bus in the process, usage in a file."""
