"""Who labels: what the job needs of an explainer, and the one behind an endpoint."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from crosscope_worker.labelling import prompts
from crosscope_worker.labelling.asking import Asker, NoAnswer, Reply
from crosscope_worker.labelling.examples import Window
from crosscope_worker.labelling.prompts import Messages

REFUSED, UNREADABLE = "the explainer refused", "the answer could not be read"
"""Reasons why a latent got no label."""
ATTEMPTS = 3
"""A request whose answer cannot be read is made this often, each time with the answer before."""


class Sender(Protocol):
    """Answers messages, and counts what it had to repeat."""

    retries: Counter[str]
    """Further tries of requests, by what was wrong with the one before."""

    def send(self, messages: Messages, spend: Callable[[], None]) -> Reply:
        """An answer; `spend` is called before each try. Raises NoAnswer or LabelError."""
        ...


class Explainer(Protocol):
    """Writes labels and judges texts by them."""

    def label(self, windows: Sequence[Window]) -> str:
        """A label for marked texts. Raises NoAnswer if there is none, and LabelError if there never will be one."""
        ...

    def judge(self, measure: str, label: str, texts: Sequence[str]) -> list[bool | None]:
        """Whether a label fits each text, as a measure of labels.SCORES asks it; None: not judged.

        Raises LabelError if no text ever will be.
        """
        ...

    def notes(self) -> list[str]:
        """What was left out or went wrong on the way, counted; sentences."""
        ...


class EndpointExplainer:
    """An explainer that is asked in messages. Safe to use from several threads."""

    def __init__(self, asker: Asker, sender: Sender, per_request: int) -> None:
        self._asker, self._sender, self._per_request = asker, sender, per_request

    def label(self, windows: Sequence[Window]) -> str:
        """See Explainer."""
        messages = prompts.explain(windows)
        for _ in range(ATTEMPTS):
            reply = self._asker.ask(messages, self._sender.send)
            if reply.is_refused:
                break
            if (label := prompts.read_label(reply.text, is_strict=True)) is not None:
                return label
            if prompts.is_refusal(reply.text):
                break
            messages = prompts.again(messages, reply.text)
        else:
            raise NoAnswer(UNREADABLE, f"{ATTEMPTS} answers without a line that begins with LABEL:")
        raise NoAnswer(REFUSED, f"the explainer refused: {reply.text[:100]!r}")

    def judge(self, measure: str, label: str, texts: Sequence[str]) -> list[bool | None]:
        """See Explainer."""
        found: list[bool | None] = []
        for first in range(0, len(texts), self._per_request):
            some = texts[first : first + self._per_request]
            found += self._judge(measure, label, some)
        return found

    def notes(self) -> list[str]:
        """See Explainer."""
        if not self._sender.retries:
            return []
        said = ", ".join(f"{what}: {count}" for what, count in sorted(self._sender.retries.items()))
        return [f"Requests that the last attempt repeated, after {said}."]

    def _judge(self, measure: str, label: str, texts: Sequence[str]) -> Sequence[bool | None]:
        messages = prompts.judge(measure, label, texts)
        try:
            for _ in range(ATTEMPTS):
                reply = self._asker.ask(messages, self._sender.send)
                if (judged := prompts.read_judgements(reply.text, len(texts))) is not None:
                    return judged
                messages = prompts.again(messages, reply.text, num_texts=len(texts))
        except NoAnswer:
            pass
        return [None] * len(texts)
