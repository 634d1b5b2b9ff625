"""Development only: the training recipe of the demo model and the benchmarks.

rivals           TRUST beside other methods
engine           every kind of concept, ablations, held-out concepts
pairs            combinations: one run beside the mean of three
stacked          ten concepts one by one, merged, in one run
growth           what one run over many concepts costs
scrub            trials of scrubbing
scrub_cost       what scrubbing takes at full size
never_seen       what attacks teach a model that never knew
neurons          where concept neurons sit and move
knowledge        does asking tell known words from others
diff_files       size, time and memory of diff formats at full size
trained_diffs    the diffs of all these, made once and kept in runs/diffs
measure          what a diff did, by the demo's judge
plots            plots of ablations
attack_pictures  what attackers get from three methods
robust_pictures  pictures of robust mode
results          the tables of the docs
baselines        other methods
world            the demo model's training
zoo              other small models
gpu_check        what only a GPU can tell
"""
