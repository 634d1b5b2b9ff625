"""Emoji World: the small model, judge and vocabulary that ship with TRUST Unlearn."""
