"""AUTOMATIC1111 and Forge: their model lent to the engine, diffs at generation, tab and API.

Written against both hosts' own modules; `host.py` says what a host must offer, `a1111.py` and
`forge.py` say how each does. The door is `scripts/trust_unlearn.py`.
"""
