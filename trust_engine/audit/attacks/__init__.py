"""Attempts to bring the concept back, each with its stance, source and budget."""
