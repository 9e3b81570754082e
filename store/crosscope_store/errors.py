"""What can be wrong with a store. Every message is a sentence with the way out."""


class StoreError(OSError):
    """A store did not do what it was asked."""


class StoreRefused(StoreError):
    """A store that will not do it however often it is asked: no such bucket, no rights, an unknown scheme."""


class StoreAway(StoreError):
    """A store that does not answer now; asking again may help."""


class EntryError(StoreRefused):
    """One thing that cannot be published, or be used as it was; the message says why. It says nothing of the others."""


class StoreGone(StoreError):
    """Something that a store does not hold, or no longer holds."""


class StoreTaken(StoreError):
    """An id under which somebody else has published just before."""
