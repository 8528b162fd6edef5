"""Chat templates: conversation to token ids and label mask."""
