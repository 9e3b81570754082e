"""Requests to an address that speaks OpenAI's chat format, with bounded retries. Knows nothing about latents."""

import email.utils
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx2

from crosscope_proto.label_specs import ANSWER_TOKENS, Endpoint, tokens_of
from crosscope_worker.labelling.asking import FAILED, NoAnswer, Reply
from crosscope_worker.labelling.errors import LabelError
from crosscope_worker.labelling.prompts import Messages

MAX_BYTES = 1 << 20
"""Bytes of an answer at most."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0
"""Seconds before the second try, which double from try to try up to the longest."""
MAX_RETRY_AFTER_S = 600.0
"""An endpoint's own Retry-After is followed up to this."""
_AGAIN = (408, 409, 425, 429)
_HOPELESS = {401: "refuses the key", 403: "refuses the key", 404: "has no such address or model"}
_SHOWN = 200


class Client:
    """Sends requests of one job. Safe to use from several threads."""

    def __init__(self, spec: Endpoint, key: str | None, stopping: threading.Event, *, is_local: bool) -> None:
        """`stopping` ends waits; a local endpoint is asked past any proxy."""
        self._spec, self._key, self._stopping = spec, key, stopping
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx2.Client(headers=headers, timeout=spec.timeout_s, trust_env=not is_local)
        self._url = f"{spec.address}/chat/completions"
        self.retries: Counter[str] = Counter()
        """Further tries, by what was wrong with the one before."""

    def close(self) -> None:
        """Closes its connections."""
        self._client.close()

    def send(self, messages: Messages, spend: Callable[[], None]) -> Reply:
        """The answer to `messages`; `spend` is called before each try.

        Raises NoAnswer if no try is answered, and LabelError where no request ever will be.
        """
        wrong = ""
        for number in range(self._spec.retries + 1):
            if self._stopping.is_set():
                break
            spend()
            try:
                status, headers, body = self._post(messages)
            except httpx2.InvalidURL as error:
                raise LabelError(f"explainer.address {self._spec.address}: {error}") from error
            except httpx2.HTTPError as error:
                wrong, wait = f"no answer ({type(error).__name__})", None
            else:
                if status == 200 and (reply := self._reply(messages, body, number + 1)) is not None:
                    return reply
                wrong = f"HTTP {status}" if status != 200 else "an answer that is no chat completion"
                self._check(status, body)
                wait = _retry_after(headers.get("retry-after"))
            if number < self._spec.retries:
                self.retries[wrong] += 1
                backoff = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**number)
                self._stopping.wait(backoff if wait is None else wait)
        raise NoAnswer(FAILED, f"{self._spec.address}: {wrong or 'stopped'}, {self._spec.retries + 1} times")

    def _post(self, messages: Messages) -> tuple[int, httpx2.Headers, bytes]:
        turns = [{"role": role, "content": content} for role, content in messages]
        fields = {"temperature": 0, "max_tokens": ANSWER_TOKENS, **self._spec.body}
        given = {name: value for name, value in fields.items() if value is not None}
        document = {"model": self._spec.model, "messages": turns, **given}
        with self._client.stream("POST", self._url, json=document) as response:
            found = bytearray()
            for piece in response.iter_bytes():
                found += piece
                if len(found) > MAX_BYTES:
                    break
            return response.status_code, response.headers, bytes(found)

    def _reply(self, messages: Messages, body: bytes, tries: int) -> Reply | None:
        """The answer in a body; None if it is of another shape."""
        try:
            document: Any = json.loads(body)
            choice = document["choices"][0]
            text, refusal = choice["message"].get("content"), choice["message"].get("refusal")
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            return None
        is_refused = bool(refusal) or choice.get("finish_reason") == "content_filter"
        if not isinstance(text, str):
            if text is not None or not is_refused:
                return None
            text = ""
        text = text.encode("utf-8", "replace").decode()
        usage = document.get("usage")
        asked = sum(tokens_of(len(content)) for _, content in messages)
        return Reply(
            text,
            _count(usage, "prompt_tokens", asked),
            _count(usage, "completion_tokens", tokens_of(len(text))),
            is_refused,
            tries,
        )

    def _check(self, status: int, body: bytes) -> None:
        """Raises for a status that another try does not change."""
        if status == 200 or status in _AGAIN or status >= 500:
            return
        where = f"{self._spec.address} (model {self._spec.model})"
        if status in _HOPELESS:
            key = f"the key in {self._spec.key}" if self._key else "no key"
            raise LabelError(f"{where} {_HOPELESS[status]}: HTTP {status}, asked with {key}; mend explainer")
        said = " ".join(body.decode("utf-8", "replace").split())
        said = said.replace(self._key, "…") if self._key else said
        raise NoAnswer(FAILED, f"{where} refuses the request: HTTP {status}: {said[:_SHOWN]}")


def _count(usage: object, name: str, otherwise: int) -> int:
    found = usage.get(name) if isinstance(usage, dict) else None
    return found if isinstance(found, int) and not isinstance(found, bool) and 0 <= found < 10**9 else otherwise


def _retry_after(value: str | None) -> float | None:
    """The seconds that a Retry-After asks to wait; None if it says nothing that can be read."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return min(MAX_RETRY_AFTER_S, max(0.0, seconds)) if seconds == seconds else None
