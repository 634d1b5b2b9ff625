"""A zoo of small trained models: other architectures, predictions, languages, and derivatives.

__main__    train, unpack, check a member
members     all members: how each is trained and packed
siblings    `sd2`, `sdxl`
sd3         `sd3`
english     `english`: its UNet
text        `english`: its text tower
words       `english`: word vectors, and which words mean which object
wordnet     `english`: WordNet's nouns
token_rows  `english`: token rows out of word vectors
captions    `english`: captions in several dialects
language    `english`: does it know English
derived     a fine-tune, an inpainting UNet, a few-step LoRA, a merge
towers      text towers of other widths
unet        the training loop of a denoiser
training    runs that stop and resume
archive     trained weights in few bytes
files       checkpoints under ordinary names
pictures    how a member is drawn with, and a picture of each
quality     what members draw, by the judge
"""
