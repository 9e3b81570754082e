"""Finds latents by text."""
