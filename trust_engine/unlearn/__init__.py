"""The method: fine-tune what carries the concept and leave the rest (Algorithm 1, in `run`).

forget          the whole job in one call
run             Algorithm 1: Unlearning, from concepts to a diff
resolve_spec    what is done with a spec: steps, passes, budget
word_knowledge  whether the model knows the words, asked before training
trajectory      what is recorded: latents, and what enters each cross-attention layer
prompt_pairs    what is trained on: prompts that meet recorded states, and their goals
units           the units of weights that are trained together
layerwise       local engine: effect and harm of one layer
end_to_end      global engine: effect and harm of the whole UNet
scrubbing       robust mode's first stage: what only the concept's pictures have is taken out
theta_layout    a unit's weights as one vector theta
trainer         one step: effect, mask, objective, update
saliency        three sources of saliency
mask            which entries may change: shrinking (default), bounded
objective       CSR, CIP and the Hessian product
optimiser       Adam within the mask
results         what a run has come to: offsets, neurons, figures, cost
provenance      what a diff's label says of its run, and a run's key
run_state       the state of a run as a file, to go on from
resume_check    whether a run can go on from such a state
run_store       the folder of all kept runs, by their keys
autosave        writes a run's state while it works, and finds an earlier one
estimate        how long a run will take here
effort          quick, normal, thorough: steps in one dial
"""
