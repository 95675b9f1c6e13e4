"""The live bus on NATS: identities, the embedded server, and the Bus port over one connection."""
