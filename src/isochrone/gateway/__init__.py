"""The data plane: takes requests at one site, serves them where they are answered soonest."""
