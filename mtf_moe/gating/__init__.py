"""Choose: the routers, one a file, and what they share."""
