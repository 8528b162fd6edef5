"""Import of third-party models: layout detection, readers, conversion."""
