"""Decides which ingress a client is sent to: by place, by rule of entry, by health."""
