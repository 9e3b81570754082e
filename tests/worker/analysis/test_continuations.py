"""Greedy continuations of a look: they end where an answer of Generate does, and are those of transformers."""

import numpy as np
import pytest
import torch
from torch import Tensor

from crosscope_proto.roles import BASE, CHAT
from crosscope_worker.analysis.looks import continuations as module
from crosscope_worker.analysis.looks.continuations import Answer, Continued, continuations
from crosscope_worker.effects.answer import Answer as AnswerText
from crosscope_worker.effects.decoding import end_ids
from crosscope_worker.models.pair import Pair
from crosscope_worker.models.places import PairError
from crosscope_worker.tokenizer.tokens import TextTokenizer, Turn
from tests.worker.effects.decoder_runs import with_models
from tests.worker.tiny_models import tiny_model

NUM_TOKENS = 6
SAID = ("tell me a story", "what is two plus three?", "hi")


def prompts_of(tokenizer: TextTokenizer, *said: str) -> list[tuple[np.ndarray, np.ndarray]]:
    tokens = [tokenizer.conversation([Turn("user", each)], add_generation_prompt=True) for each in said]
    return [(each.ids, each.roles) for each in tokens]


def run(pair: Pair, tokenizer: TextTokenizer, prompts: list[tuple[np.ndarray, np.ndarray]]) -> list[Continued]:
    reports: list[float] = []
    found = continuations(pair, tokenizer, prompts, NUM_TOKENS, lambda share, _: reports.append(share))
    assert reports == sorted(reports)
    assert reports[-1] == 1
    return found


def greedy(pair: Pair, model: int, tokenizer: TextTokenizer, ids: np.ndarray) -> Answer:
    """By transformers' own `generate`."""
    ends = sorted(end_ids(pair.models[model], tokenizer))
    given = torch.from_numpy(ids)[None]
    made = pair.models[model].generate(  # pyright: ignore[reportCallIssue]
        given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=NUM_TOKENS, eos_token_id=ends
    )
    new = made[0, len(ids) :].tolist()
    return Answer(text_of(tokenizer, ends, new), new[-1] in ends)


def text_of(tokenizer: TextTokenizer, ends: list[int], ids: list[int]) -> str:
    answer = AnswerText(tokenizer, ends, (), NUM_TOKENS, 10**6)
    for id_ in ids:
        answer.take(id_)
    return answer.text


def test_prompts_side_by_side_are_those_of_transformers(tiny_pair: Pair, tokenizer: TextTokenizer, monkeypatch) -> None:
    prompts = prompts_of(tokenizer, *SAID)
    expected = [Continued(tuple(greedy(tiny_pair, m, tokenizer, ids) for m in (BASE, CHAT))) for ids, _ in prompts]
    assert run(tiny_pair, tokenizer, prompts) == expected
    monkeypatch.setattr(module, "CACHE_BYTES", 1)
    assert run(tiny_pair, tokenizer, prompts) == expected, "one after the other"


def test_a_continuation_stops_at_the_templates_end_of_turn(tiny_pair: Pair, tokenizer: TextTokenizer) -> None:
    end = tiny_pair.tokenizer.convert_tokens_to_ids("<end_of_turn>")
    config = tiny_pair.models[CHAT].generation_config
    assert config is not None
    assert end not in (tiny_pair.tokenizer.eos_token_id, config.eos_token_id)
    ids, roles = prompts_of(tokenizer, SAID[0])[0]
    say = greedy(tiny_pair, CHAT, tokenizer, ids)
    calls = 0

    def end_after_two(_module: object, _inputs: object, logits: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return logits.index_fill(-1, torch.tensor([end]), 1e4) if calls > before + 2 else logits

    # The trial reads pieces of its own before the prompt.
    hook = tiny_pair.models[CHAT].get_output_embeddings().register_forward_hook(end_after_two)
    try:
        before = 10**6
        assert run(tiny_pair, tokenizer, [(ids, roles)])[0].answers == (greedy(tiny_pair, BASE, tokenizer, ids), say)
        before, calls = calls - NUM_TOKENS, 0
        answers = run(tiny_pair, tokenizer, [(ids, roles)])[0].answers
    finally:
        hook.remove()
    assert answers is not None
    assert answers[BASE] == greedy(tiny_pair, BASE, tokenizer, ids)
    assert answers[CHAT].ended
    assert 0 < len(answers[CHAT].text) < len(say.text)
    assert say.text.startswith(answers[CHAT].text), "without the end itself"


def test_what_cannot_be_continued_has_a_reason(tiny_pair: Pair, tokenizer: TextTokenizer) -> None:
    long = prompts_of(tokenizer, "river " * 300)[0]
    short = prompts_of(tokenizer, SAID[2])[0]
    assert tiny_pair.max_positions is not None
    assert len(long[0]) > tiny_pair.max_positions
    cut, whole = run(tiny_pair, tokenizer, [long, short])
    assert cut.answers is None
    assert f"has {len(long[0])} tokens, but a text may have {tiny_pair.max_positions}" in cut.reason
    assert whole.answers is not None
    mamba = tiny_model("Mamba")
    with pytest.raises(PairError, match="MambaForCausalLM, cannot generate here"):
        run(with_models(tiny_pair, mamba, mamba), tokenizer, [short])
