"""One page that shows how a training run went: losses, loads, lost tokens."""
