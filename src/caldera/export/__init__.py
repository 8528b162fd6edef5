"""What people do with a model beyond talking to it."""
