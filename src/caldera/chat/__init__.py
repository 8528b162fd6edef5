"""People in, conversations out: sessions, the terminal, and the images that users bring."""
