"""Who may do what to whose records, and how long keys and personal fields last. Pure."""
