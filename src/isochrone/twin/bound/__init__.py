"""How soon answers could begin at best: lower bounds that no policy can pass."""
