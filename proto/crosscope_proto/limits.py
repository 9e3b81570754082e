"""Limits by which latents are called something. Whatever compares with one of them takes it from here."""

from typing import Final

CHAT_ONLY_ABOVE: Final = 0.9
"""Relative norm above which a latent is of class chat_only (math §6)."""
BASE_ONLY_BELOW: Final = 0.1
"""Relative norm below which a latent is of class base_only (math §6)."""
SHARED_WITHIN: Final = 0.1
"""A latent is shared if its relative norm is less than this from 1/2 (math §6)."""
DIFFERENCE_RATIO: Final = 0.3
"""In a dictionary of differences a latent is chat's own if beta_act of base is less than this much of chat's."""
MAX_NU_ERR: Final = 0.2
"""A chat-only label is believed below this nu_err; above it the base model has the latent too (math §4)."""
MAX_NU_REC: Final = 0.5
"""A chat-only label is believed below this nu_rec; above it other latents carry it in the base model (math §4)."""
