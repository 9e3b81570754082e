"""What ends a job that labels."""


class LabelError(ValueError):
    """No labels can be made; the message says why and what to do."""
