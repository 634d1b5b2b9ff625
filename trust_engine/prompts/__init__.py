"""What is written for a concept: prompts that name it, their anchors, and what must stay.

concept    from concepts to the prompts of a run
kinds      a class for each kind of concept: its targets, anchors, what stays
subset     the one way to take an evenly spread part
templates  sentences, things and styles
"""
