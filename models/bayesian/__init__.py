"""Networks whose weights are latent."""
