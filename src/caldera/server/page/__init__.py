"""The page in a browser: images and questions in, answers and what they looked at out."""
