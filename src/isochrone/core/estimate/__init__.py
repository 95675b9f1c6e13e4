"""Physics: round trips from measured tables, prefill and decode time."""
