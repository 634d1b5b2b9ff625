"""Who says what a picture shows.

catalogue   all judges by name: the one table
base        the interface, and the demo's judge
clip        zero-shot CLIP
clip_files  CLIP from a folder or a file
nudenet     NudeNet
"""
