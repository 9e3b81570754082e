"""What both models of a pair do with tokens, as they are and with latents changed. Knows no requests and no texts."""
