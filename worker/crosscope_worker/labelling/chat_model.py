"""The pair's own chat model as an explainer: it writes greedily, and judges by its next token. Not thread-safe."""

from collections.abc import Callable, Sequence

import torch

from crosscope_proto.roles import CHAT
from crosscope_worker.effects.decoding import Decoder
from crosscope_worker.effects.orders import ArmOrder, DoesNotFit, Ended, EndReason, Order, SamplingSettings
from crosscope_worker.effects.subject import Subject
from crosscope_worker.effects.trial import bytes_per_token
from crosscope_worker.labelling import prompts
from crosscope_worker.labelling.asking import FAILED, Asker, NoAnswer, Reply
from crosscope_worker.labelling.errors import LabelError
from crosscope_worker.labelling.examples import Window
from crosscope_worker.labelling.explainer import UNREADABLE
from crosscope_worker.labelling.prompts import Messages
from crosscope_worker.models.pair import Pair
from crosscope_worker.tokenizer.chat_template import Turn
from crosscope_worker.tokenizer.tokens import PromptError, TextTokenizer, TokenisedText

PREFILL_TOKENS = 512


class ChatExplainer:
    """The chat model of a pair."""

    def __init__(self, asker: Asker, pair: Pair, tokenizer: TextTokenizer, answer_tokens: int) -> None:
        """An answer has at most `answer_tokens`. Raises PairError for a model that cannot generate, and LabelError for
        one that tells no Yes from No.
        """
        self._asker, self._pair, self._tokenizer = asker, pair, tokenizer
        self._answer_tokens = answer_tokens
        self._subject = Subject(pair)
        self._token_bytes = bytes_per_token(self._subject, CHAT)
        self._subject.wholes[CHAT].check()
        yes, no = (int(tokenizer.continuation(word)[0]) for word in ("Yes", "No"))
        if yes == no:
            raise LabelError("the pair's tokenizer begins Yes and No with the same token; use an endpoint")
        self._yes, self._no = yes, no
        self._num_not_shown = 0

    def label(self, windows: Sequence[Window]) -> str:
        """See Explainer. Where the model cannot read as many texts, the weakest are left out."""
        shown = list(windows)
        while (prompt := self._fits(prompts.explain(shown), self._answer_tokens)) is None and len(shown) > 1:
            shown.pop()
        self._num_not_shown += len(windows) - len(shown)
        if prompt is None:
            raise NoAnswer(FAILED, "the chat model cannot read so long a prompt; lower examples.context")
        reply = self._asker.ask(prompts.explain(shown), lambda _, spend: self._write(prompt, spend), "write")
        if (label := prompts.read_label(reply.text, is_strict=False)) is None:
            raise NoAnswer(UNREADABLE, "the chat model's answer has no word")
        return label

    def judge(self, measure: str, label: str, texts: Sequence[str]) -> list[bool | None]:
        """See Explainer."""
        return [self._judge(prompts.judge_one(measure, label, text)) for text in texts]

    def notes(self) -> list[str]:
        """See Explainer."""
        count = self._num_not_shown
        return [f"Texts that were not shown, because the model cannot read so much: {count}."] if count else []

    def _judge(self, messages: Messages) -> bool | None:
        if (prompt := self._fits(messages, 1)) is None:
            return None
        try:
            return self._asker.ask(messages, lambda _, spend: self._choose(prompt, spend), "choose").text == "Yes"
        except NoAnswer:
            return None

    def _fits(self, messages: Messages, more: int) -> TokenisedText | None:
        """The prompt; None if the models cannot read it with as many tokens more."""
        try:
            found = self._tokenizer.conversation([Turn(*each) for each in messages], add_generation_prompt=True)
        except PromptError as error:
            raise LabelError(f"the pair's chat template takes no request: {error}; use an endpoint") from error
        limit = self._pair.max_positions
        return found if limit is None or len(found.ids) + more <= limit else None

    @torch.inference_mode()
    def _choose(self, prompt: TokenisedText, spend: Callable[[], None]) -> Reply:
        """Yes or No, whichever the model finds more probable as the next token."""
        spend()
        whole = self._subject.wholes[CHAT]
        ids = torch.from_numpy(prompt.ids)[None].to(self._pair.device)
        logits = whole.logits(whole.hidden(ids)[0, -1:])[0]
        return Reply("Yes" if logits[self._yes] > logits[self._no] else "No", len(prompt.ids), 1)

    @torch.inference_mode()
    def _write(self, prompt: TokenisedText, spend: Callable[[], None]) -> Reply:
        """A greedy answer."""
        spend()
        longest = len(prompt.ids) + self._answer_tokens
        room = 2 * longest * self._token_bytes[0]  # a row of the prompt, and one of its answer
        decoder = Decoder(self._subject, room, PREFILL_TOKENS, token_bytes=(self._token_bytes, self._token_bytes))
        arms = (ArmOrder(CHAT, sampling=SamplingSettings(max_new_tokens=self._answer_tokens)),)
        try:
            decoder.admit(Order(prompt.ids, prompt.roles, arms, self._tokenizer))
        except DoesNotFit as error:
            raise NoAnswer(FAILED, str(error)) from error
        while not decoder.is_idle:
            for event in decoder.step():
                if isinstance(event, Ended):
                    if event.reason is EndReason.OUT_OF_MEMORY:
                        raise NoAnswer(FAILED, "the device's memory ran out")
                    return Reply(event.text, len(prompt.ids), event.num_tokens)
        raise AssertionError("a decoder is idle before its answer has ended")
