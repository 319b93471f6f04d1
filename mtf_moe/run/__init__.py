"""What the programs share: gin files, and the model that gin configures."""
