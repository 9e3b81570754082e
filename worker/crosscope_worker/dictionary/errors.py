"""The error for files and parts of a crosscoder that cannot be used."""


class CrosscoderError(ValueError):
    """Crosscoder files or parts that cannot be used; the message says which, and what is wrong with them."""
