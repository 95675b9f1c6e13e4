"""The agent: one process a site that makes its engines match what control desires."""
