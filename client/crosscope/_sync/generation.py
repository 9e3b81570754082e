# Written by client/generate.py from _async/generation.py. Do not edit.
"""A generation under way: tokens as they come, then the answers. Knows no call."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

from crosscope import _blocking, _decode, _decode_effects
from crosscope._answers import Answer, NewToken, answers_html, answers_text
from crosscope._arms import Arm
from crosscope._errors import CrosscopeError, InvalidInput, ServerError
from crosscope._public import public
from crosscope._types import Tokens
from crosscope_proto.v1 import effects_pb2 as pb


@public
class Generation:
    """Answers of the arms of one prompt, as they come.

        generation = crosscoder.generate("Hello", arms=[Arm(model="base"), Arm(model="chat")])
        for token in generation:
            print(token.arm, token.piece)
        print(generation.text)

    Iterating yields each NewToken when it comes; a second time, those that have come and then the rest. Leaving the
    iterator early, `close` and the end of an `with` block cancel what is not generated yet. Errors of the call
    are raised where tokens are read.
    """

    prompt: Tokens
    """The prompt's tokens."""
    arms: tuple[Arm, ...]
    """The arms, as `NewToken.arm` counts them."""
    version_id: str
    """The version of the crosscoder that answers; empty for a pair."""

    def __init__(
        self,
        replies: Generator[pb.GenerateResponse, None, None],
        start: pb.GenerationStart,
        source: str,
        arms: Sequence[Arm],
        num_samples: Sequence[int],
    ) -> None:
        self.prompt, self.arms, self.version_id = _decode.tokens(start.tokens), tuple(arms), start.version_id
        self._replies, self._start, self._source = replies, start, source
        self._tokens: list[NewToken] = []
        self._ends: dict[tuple[int, int], pb.GenerationEnd] = {}
        self._answers = [(arm, sample) for arm, num in enumerate(num_samples) for sample in range(num)]
        self._is_over = False
        self._error: CrosscopeError | None = None

    def __iter__(self) -> Iterator[NewToken]:
        num_given, left_early = 0, True
        try:
            while num_given < len(self._tokens) or self._read():
                for token in self._tokens[num_given:]:
                    num_given += 1
                    yield token
            left_early = False
        finally:
            if left_early:
                self.close()

    def _read(self) -> bool:
        """Reads one more reply; returns whether there was one. An error is raised again by every later reading."""
        if self._error is not None:
            raise self._error
        if self._is_over:
            return False
        try:
            reply = next(self._replies, None)
            if reply is None and (missing := len(self._answers) - len(self._ends)):
                raise ServerError(
                    f"the call ended before {missing} of {len(self._answers)} answers of {self._source} did"
                )
        except BaseException as error:
            self._is_over, self._error = True, error if isinstance(error, CrosscopeError) else None
            raise
        if reply is None:
            self._is_over = True
        elif reply.WhichOneof("event") == "step":
            self._tokens.extend(map(_decode_effects.new_token, reply.step.tokens))
        elif reply.WhichOneof("event") == "end":
            self._ends[reply.end.arm, reply.end.sample] = reply.end
        return reply is not None

    def _finish(self) -> None:
        """Reads everything that is still to come."""
        while self._read():
            pass

    @property
    def answers(self) -> list[Answer]:
        """The answers, by arm and sample; reads what is still to come. One that was left has what had come of it."""
        self._finish()
        return self._received()

    @property
    def text(self) -> str:
        """The text of the only answer; reads what is still to come. Raises InvalidInput if there are several."""
        if len(self._answers) != 1:
            raise InvalidInput.of("text", f"this generation has {len(self._answers)} answers; read .answers")
        self._finish()
        return self._received()[0].text

    def _received(self) -> list[Answer]:
        """The answers as far as they have come."""
        found = []
        for arm, sample in self._answers:
            new = [token for token in self._tokens if (token.arm, token.sample) == (arm, sample)]
            end = self._ends.get((arm, sample))
            answer = _decode_effects.answer(self.arms[arm], sample, new, end, is_over=self._is_over)
            if len(self._start.code.row_starts):
                answer = replace(answer, code=_decode_effects.answer_code(self._source, self._start, new))
            found.append(answer)
        return found

    def close(self) -> None:
        """Cancels what is not generated yet. Closing twice does nothing."""
        self._is_over = True
        self._replies.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __str__(self) -> str:
        """The answers, each under a heading; as far as they have come where waiting is impossible."""
        _blocking.wait_if_blocking(self._finish)
        return answers_text(self.prompt, self._received())

    def __repr__(self) -> str:
        arms, state = ", ".join(arm.name for arm in self.arms), "ended" if self._is_over else "under way"
        return f"{type(self).__name__}({arms}: {len(self._tokens)} tokens, {state})"

    def _repr_html_(self) -> str:
        _blocking.wait_if_blocking(self._finish)
        return answers_html(self.prompt, self.arms, self._received())
