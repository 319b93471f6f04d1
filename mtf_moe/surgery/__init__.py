"""A checkpoint of one shape of mixture made into one of another."""
