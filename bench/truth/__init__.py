"""Planted truth: what training and analysis find of latents that are known. `make truth` runs it."""
