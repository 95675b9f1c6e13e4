"""Which site, then which replica, answers a request soonest among those allowed."""
