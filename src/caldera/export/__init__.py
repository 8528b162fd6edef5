"""Export to other formats, and parity with other implementations."""
