"""Emoji World: the small model, judge and vocabulary that ship with TRUST Unlearn.

vocabulary  objects, styles, backgrounds, captions
judge       the CNN that says what a picture shows
"""
