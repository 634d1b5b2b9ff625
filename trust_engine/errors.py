"""What can go wrong, each with a message that says what, where and what to do."""

from __future__ import annotations


class TrustError(Exception):
    """Base of every error a user can cause or mend."""


class SpecError(TrustError):
    """A concept or setting is missing, contradictory or out of range."""


class ModelError(TrustError):
    """A model file is missing, unsafe, or not one the engine can read."""


class DiffError(TrustError):
    """A diff file is damaged, or belongs to another model."""


class OutputError(TrustError):
    """A result cannot be written where the user wants it."""


class DivergenceError(TrustError):
    """Training produced numbers that are not finite."""
