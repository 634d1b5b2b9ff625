"""Robust mode's own part: what only the concept's pictures have is taken out of the layers.

What an attacker can bring back is what the inner layers still know of how the concept looks.
`moments` measures what enters a layer, `directions` says what is taken out of it and `eigen` finds
these, `blocks` puts the layers in the order in which they work, `replay` runs the network to a
block without computing those before it, `picture_lists`, `pictures` and `noised` say on which
pictures, `run` is the whole of scrubbing. `relabel` then trains what was scrubbed; `picture_stage`
does all of it, as a spec asks, and says what a run keeps.
"""
