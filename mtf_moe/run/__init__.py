"""What programs share: gin files, the model they configure, the console."""
