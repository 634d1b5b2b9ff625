"""Distances between pictures, and figures with their uncertainty."""
