"""Chat from Python and in the terminal."""
