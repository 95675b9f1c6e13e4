"""The command line: one file per command group, each loading what it needs only when it runs."""
