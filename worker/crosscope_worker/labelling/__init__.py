"""Labels for latents, written by a model from examples and scored on others (math §14)."""
