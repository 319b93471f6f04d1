"""What the programs share: gin files, the model that gin configures, the console.
"""
