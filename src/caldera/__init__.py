"""caldera: LLaVA, whole. Annotated pictures in, a visual assistant out."""

__version__ = "0.1.0"
