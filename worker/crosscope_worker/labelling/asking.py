"""Requests that are counted, bounded and remembered: an answer that came is never asked for again, after a kill too.

Knows neither endpoints nor models: both are a function that answers.
"""

import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from crosscope_proto.label_specs import LabelBudget
from crosscope_worker.disk import sync
from crosscope_worker.labelling.prompts import Messages

FAILED, SPENT = "the explainer did not answer", "the budget was reached"
"""Reasons why a latent got no label."""


@dataclass(frozen=True)
class Reply:
    """An answer."""

    text: str
    prompt_tokens: int
    answer_tokens: int
    is_refused: bool = False
    """Whether the endpoint says that the model refuses."""
    tries: int = 1
    """Requests that it took."""


class NoAnswer(Exception):
    """A request that got no answer; the message says why."""

    def __init__(self, reason: str, detail: str) -> None:
        """`reason` is one of a few, by which latents are counted; `detail` a sentence."""
        super().__init__(detail)
        self.reason = reason


class Answers:
    """The answers of a job by request, in a file that grows line by line. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        """Reads what earlier attempts have written; a line that a kill cut short is cut off. Raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._known: dict[str, Reply] = {}
        self._lock = threading.Lock()
        self._path, self._file = path, path.open("a+b")
        self._file.seek(0)
        whole = 0
        for line in self._file:
            try:
                document = json.loads(line) if line.endswith(b"\n") else {}
                key = document.pop("key")
                self._known[key] = Reply(**document)
            except (ValueError, KeyError, TypeError):
                break
            whole += len(line)
        self._file.truncate(whole)

    def __len__(self) -> int:
        return len(self._known)

    def all(self) -> list[Reply]:
        """All answers."""
        with self._lock:
            return list(self._known.values())

    def get(self, key: str) -> Reply | None:
        """The answer to a request, if it came."""
        return self._known.get(key)

    def put(self, key: str, reply: Reply) -> None:
        """Keeps an answer; it is on disk when this returns. Raises OSError."""
        line = json.dumps({"key": key, **asdict(reply)}) + "\n"
        with self._lock:
            self._known[key] = reply
            self._file.write(line.encode())
            self._file.flush()
            sync(self._path)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


@dataclass
class Spent:
    """What was asked, in all attempts."""

    requests: int = 0
    """Repeated requests included."""
    prompt_tokens: int = 0
    answer_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of prompts and answers."""
        return self.prompt_tokens + self.answer_tokens


class Asker:
    """Asks within a budget. Safe to use from several threads."""

    def __init__(self, answers: Answers, budget: LabelBudget, name: str) -> None:
        """`name` tells the model from others: its answers are its own."""
        self._answers, self._budget, self._name = answers, budget, name
        self._lock = threading.Lock()
        known = answers.all()
        self.spent = Spent(
            sum(reply.tries for reply in known),
            sum(reply.prompt_tokens for reply in known),
            sum(reply.answer_tokens for reply in known),
        )

    def ask(self, messages: Messages, send: Callable[[Messages, Callable[[], None]], Reply], how: str = "") -> Reply:
        """The answer to `messages`: one that is known, or what `send` gives, which calls its second argument before
        each try. `how` tells ways to answer apart.

        Raises NoAnswer, also where the budget is spent, and what `send` raises.
        """
        key = hashlib.sha256(json.dumps([self._name, how, messages]).encode()).hexdigest()
        if (known := self._answers.get(key)) is not None:
            return known
        reply = send(messages, self._spend)
        with self._lock:
            self.spent.prompt_tokens += reply.prompt_tokens
            self.spent.answer_tokens += reply.answer_tokens
        self._answers.put(key, reply)
        return reply

    def _spend(self) -> None:
        with self._lock:
            if self.spent.requests >= self._budget.requests:
                raise NoAnswer(SPENT, f"budget.requests {self._budget.requests} was reached")
            if self.spent.tokens >= self._budget.tokens:
                raise NoAnswer(SPENT, f"budget.tokens {self._budget.tokens} was reached")
            self.spent.requests += 1
