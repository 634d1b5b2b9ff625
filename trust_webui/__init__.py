"""What AUTOMATIC1111 and Forge share: their model as the engine's denoiser, and the tab."""
