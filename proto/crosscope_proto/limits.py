"""The limits that decide what a latent is called. Every part takes them from here."""

from typing import Final

CHAT_ONLY_ABOVE: Final = 0.9
"""Relative norm above which a latent is of class chat_only (math §6)."""
BASE_ONLY_BELOW: Final = 0.1
"""Relative norm below which a latent is of class base_only (math §6)."""
SHARED_WITHIN: Final = 0.1
"""A latent is of class shared if its relative norm differs from 1/2 by less than this (math §6)."""
DIFFERENCE_RATIO: Final = 0.3
"""In a dictionary of differences a latent is of class chat_only if |beta_act base / beta_act chat| is below this."""
MAX_NU_ERR: Final = 0.2
"""Believe a chat-only label below this nu_err; above it the base model has the latent too (math §4)."""
MAX_NU_REC: Final = 0.5
"""Believe a chat-only label below this nu_rec; above it other latents carry it in the base model (math §4)."""
MAX_ACTIVATION_RATIO: Final = 0.15
"""Doubt that only one model has a latent where the other's activation along its row is a larger share (math §6)."""
NUM_SE: Final = 2.0
"""Standard errors by which a figure must clear its limit, so that the limit decides and not the sample (math §6)."""
MIN_TEXTS: Final = 10
"""Nothing is judged from fewer texts: standard errors over shards are much too small there (math §6)."""
MIN_ACTIVE: Final = 30
"""Nothing is judged from fewer active tokens in versions that did not count texts; MIN_TEXTS texts have about three
each."""
BORDER_WITHIN: Final = 0.02
"""A relative norm this near the border of its class is remarked on."""
