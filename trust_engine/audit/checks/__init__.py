"""What an audit measures without attacking.

base        a check: one question, answered and saved by itself
core        the figures that every audit has: gone, objects, styles, backgrounds kept
forgetting  other sentences, samplers, guidance, steps, image to image
retention   neighbours, companions, prompt alignment, nearness to the untouched model
"""
