"""TRUST Unlearn: make a text-to-image model forget a concept, and say what is left of it."""

__version__ = "0.1.0"
