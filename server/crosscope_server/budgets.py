"""How many tokens of prompts each caller may have read: a bucket a caller, which fills evenly over a minute.

How many tokens a prompt has is known only when it has been tokenised. So a call is let through while the bucket is not
below zero, and its tokens are taken out afterwards; the next call waits until the bucket is at zero again. An answer
from the cache counts like any other, so that nobody learns from a limit what others have asked.
"""

import asyncio
import math
from dataclasses import dataclass

from crosscope_server.callers import Caller, calling
from crosscope_server.errors import Overloaded
from crosscope_server.refusals import Reason, Refused

_MINUTE_S = 60.0


@dataclass
class _Bucket:
    left: float
    at: float


class Budgets:
    """The buckets of all callers that have a limit, so of named tokens only. For one event loop."""

    def __init__(self, refused: Refused) -> None:
        """`refused` counts refusals by reason."""
        self._refused = refused
        self._buckets: dict[str, _Bucket] = {}

    def check(self) -> None:
        """Raises Overloaded if the present caller has no tokens left, with the time when there are some again."""
        caller = calling()
        limit = caller.limits.prompt_tokens_per_minute
        if limit is None:
            return
        left = self._filled(caller, limit).left
        if left < 0 or limit == 0:
            self._refused.add(Reason.PROMPT_TOKENS)
            wait_s = -left / limit * _MINUTE_S if limit else _MINUTE_S
            raise Overloaded(
                f"the token {caller.name!r} may have {limit} tokens of prompts read a minute, and has used them; ask "
                f"again in {math.ceil(wait_s)} s, or ask whoever runs this server for a higher limit",
                retry_after_s=wait_s,
            )

    def charge(self, num_tokens: int) -> None:
        """Takes the tokens of a prompt out of the present caller's bucket."""
        caller = calling()
        if (limit := caller.limits.prompt_tokens_per_minute) is not None:
            self._filled(caller, limit).left -= num_tokens

    def _filled(self, caller: Caller, limit: int) -> _Bucket:
        """The caller's bucket as it is now."""
        now = asyncio.get_running_loop().time()
        bucket = self._buckets.setdefault(caller.name, _Bucket(limit, now))
        bucket.left = min(bucket.left + (now - bucket.at) * limit / _MINUTE_S, limit)
        bucket.at = now
        return bucket
