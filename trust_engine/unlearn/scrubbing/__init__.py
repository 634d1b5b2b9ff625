"""Scrubbing: take directions that only the concept's pictures have out of the layers' inputs.

What an attacker can bring back is what the inner layers still know of how the concept looks.
`moments` measures what enters a layer, `directions` says what is taken out of it and `eigen` finds
these, `blocks` puts the layers in the order in which they work, `replay` runs the network to a
block without computing those before it, `picture_lists`, `pictures` and `noised` say on which
pictures, `run` is the whole, and `picture_stage` what a spec asks for and a run keeps.
"""
