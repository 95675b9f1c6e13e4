"""Other people's routing policies, as routers of the fast twin, each with its parameters."""
