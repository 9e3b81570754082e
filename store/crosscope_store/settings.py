"""Settings of every process that reads or writes what is published."""

from typing import Annotated

from pydantic import AfterValidator, Field

from crosscope_proto.settings import ProcessSettings
from crosscope_store.errors import StoreRefused
from crosscope_store.shelf import LIMIT_BYTES, Shelf, open_shelf


def _store_url(value: str) -> str:
    from crosscope_store.remote import check_shared

    try:
        return check_shared(value)
    except StoreRefused as error:
        raise ValueError(str(error)) from error


class StoreSettings(ProcessSettings):
    """The settings of a process that reads or writes what is published."""

    store: Annotated[str, AfterValidator(_store_url)] | None = Field(default=None, validation_alias="CROSSCOPE_STORE")
    """URL of the store that the home shares with others, file:///FOLDER or s3://BUCKET/FOLDER; unset: none."""
    store_cache_bytes: int = Field(default=LIMIT_BYTES, ge=1_000_000, validation_alias="CROSSCOPE_STORE_CACHE_BYTES")
    """What copies of the store's files may take below the home; those unused for longest go first."""

    def shelf(self) -> Shelf:
        """The published things of the home. Asks no store yet."""
        return open_shelf(self.home, self.store, self.store_cache_bytes)
