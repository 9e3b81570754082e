"""A handle of a pair of models, without a crosscoder."""

from typing import Any

from crosscope._async.effects import AsyncEffects
from crosscope._async.transport import AsyncTransport
from crosscope._prompts import check_text
from crosscope._public import public


@public
class AsyncPair(AsyncEffects):
    """A base model and its chat-tuned sibling, as they are. Made by `AsyncClient.pair`.

    `compare` and `generate` run them; whatever names a latent needs a crosscoder.
    """

    def __init__(self, transport: AsyncTransport, name: str) -> None:
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
