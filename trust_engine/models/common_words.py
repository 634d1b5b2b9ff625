"""Everyday words, from which to propose what to keep for models without a list of their own."""

from __future__ import annotations

THINGS: tuple[str, ...] = (
    "cat", "dog", "horse", "cow", "sheep", "bird", "fish", "rabbit", "lion", "elephant", "bear",
    "butterfly", "snake", "frog", "man", "woman", "child", "baby", "crowd", "soldier", "doctor",
    "musician", "car", "truck", "bus", "train", "bicycle", "motorcycle", "airplane", "boat", "ship",
    "house", "castle", "church", "bridge", "tower", "street", "city", "village", "garden", "forest",
    "tree", "flower", "rose", "sunflower", "mountain", "river", "lake", "beach", "desert", "sky",
    "apple", "banana", "orange", "bread", "cake", "pizza", "cup of coffee", "bottle", "glass",
    "wine", "beer", "chair", "table", "bed", "lamp", "clock", "book", "phone", "computer", "camera",
    "guitar", "piano", "violin", "ball", "umbrella", "hat", "dress", "shirt", "shoe", "bag", "key",
    "knife", "sword", "gun", "candle", "mirror", "statue", "robot", "clown", "ghost", "snowman",
)  # fmt: skip
STYLES: tuple[str, ...] = (
    "photo", "watercolor", "oil painting", "pencil sketch", "cartoon", "pixel art", "anime",
    "impressionist", "art nouveau", "pop art",
)  # fmt: skip
