"""Emoji World's data and the recipe that trains its judge, autoencoder, CLIP and UNet.

__main__             trains every stage
sprites              art, rendered to one sheet
scenes               pictures and captions
tokenizer            CLIP's vocabulary as tokenizer files
train_judge          stage 1
train_autoencoder    stage 2
train_clip           stage 3
train_unet           stage 4
train_decoder        stage 5
training             what the stages share
pace                 learning rates and lengths
muon                 the optimiser Muon
number_type          the number type that a machine trains in
pack                 the parts as checkpoint and CLIP file
quality              the quality floor
crisp                how crisp it draws
autoencoder_quality  what the autoencoder keeps
"""
