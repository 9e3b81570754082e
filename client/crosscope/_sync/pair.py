# Written by client/generate.py from _async/pair.py. Do not edit.
"""A handle of a pair of models, without a crosscoder."""

from typing import Any

from crosscope._prompts import check_text
from crosscope._public import public
from crosscope._sync.effects import Effects
from crosscope._sync.transport import Transport


@public
class Pair(Effects):
    """A base model and its chat-tuned sibling, as they are. Made by `Client.pair`.

    `compare` and `generate` run them; whatever names a latent needs a crosscoder.
    """

    def __init__(self, transport: Transport, name: str) -> None:
        super().__init__(transport)
        self._name = check_text(name, "name")

    @property
    def name(self) -> str:
        """Its name."""
        return self._name

    @property
    def _source(self) -> dict[str, Any]:
        return {"pair": self._name}

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self._transport, self._name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name!r})"
