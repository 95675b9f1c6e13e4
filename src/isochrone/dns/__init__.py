"""The name server: answers the fleet's one address with the nearest ingress that is allowed."""
