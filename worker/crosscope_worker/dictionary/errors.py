"""What the files and the parts of a crosscoder are refused with."""


class CrosscoderError(ValueError):
    """Crosscoder files or parts that cannot be used; the message says which, and what is wrong with them."""
