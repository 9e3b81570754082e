"""Planted truth: trains and analyses on known latents, and scores what is found. `make truth` runs it."""
