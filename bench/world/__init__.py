"""Emoji World's data and the recipe that trains its judge, autoencoder, CLIP and UNet."""
