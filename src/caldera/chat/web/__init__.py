"""The page in a browser: pictures and questions in, answers and what they looked at out."""
