"""The servicers: each method decodes, calls and replies. Only these modules see the public messages."""
