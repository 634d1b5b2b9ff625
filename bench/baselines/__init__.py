"""Rivals: compact implementations of published methods, on the same prompts as TRUST."""
