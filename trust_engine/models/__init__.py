"""Any text-to-image denoiser under one contract: loaded, encoded for, sampled and lent."""
