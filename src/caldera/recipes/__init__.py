"""Recipes: settings of whole runs as values, with the papers' citations."""
