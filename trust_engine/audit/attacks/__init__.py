"""Attempts to bring the concept back, each with its stance, source and budget.

catalogue           all attacks by name
base                what they have in common: description, loss, how success is judged
adversarial_prefix  prompts of real tokens, optimised on the edited model: P4D, UnlearnDiffAtk
inversion           textual inversion: learnt tokens, one or three
relearn             fine-tuning the edited model: on the concept, on harmless pictures, by a LoRA
ringabell           Ring-A-Bell: prompts found in the text encoder alone
storage             rounding to fewer bits
"""
