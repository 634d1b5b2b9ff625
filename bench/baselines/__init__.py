"""Rivals: compact implementations of published methods, on the same prompts as TRUST.

catalogue    all methods, with their settings and grids
common       the task they share, and a training loop
esd          ESD
closed_form  UCE, RECE
ablation     CA
salun        SalUn
leco         LECO
zeroing      neuron zeroing (ConceptPrune)
combination  CoGFD
hardened     our robust mode before scrubbing: all weights are trained
scrubbed     our scrubbing, with settings for trials
table        tables and a plot
"""
