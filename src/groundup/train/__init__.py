"""Train: the one loop under everything that learns."""
