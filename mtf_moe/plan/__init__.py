"""What a configuration costs, and what is wrong with it, before it runs."""
