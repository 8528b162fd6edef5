"""People in, conversations out: sessions, the terminal, and the pictures that users bring."""
