"""Any text-to-image denoiser under one contract: loaded, encoded for, sampled and lent.

contract           what the engine asks of a model: Denoiser, Conditioning, LentModel
load               a model from a file or folder: load, encode, draw, decode
checkpoint         what a file or folder holds, read one tensor at a time
families           which family a file is of, and what that means: towers, UNet, size
unet_families      the UNets' shapes, by which a diff fits or not
unet_keys          names of UNet tensors: ldm and diffusers
tower_keys         names of text towers' and decoders' tensors
formats            number formats that cannot be read as they are stored
text_encoders      from words to conditioning: CLIP and OpenCLIP towers
vae                from latents to pictures
schedule           what a UNet predicts, on which noise schedule
sampler            DDIM and three others, with guidance
attention          a cross-attention layer as functions of its weights; hooks that record
diffusers_unet     a diffusers UNet under the contract
parameters         a module's weights: filled in, or exchanged for a while
recompute          modules that compute by another forward, or twice
overrides          a denoiser with other weights, the caller's own untouched
precision          16- and 8-bit weights that compute in a wider type
memory             what is free, what a run needs, what was used
identity           what a run's figures depend on, hashed
common_words       everyday things and styles, for models without a list of their own
demo_architecture  shapes of the demo model and its siblings
demo_clip          the demo's tiny CLIP
"""
