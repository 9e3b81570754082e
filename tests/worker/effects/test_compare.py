"""Compare against plain forwards and torch's own divergences, and a case by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from crosscope_proto.roles import BASE, CHAT
from crosscope_worker.dictionary.streams import DIFFERENCE, STREAMS
from crosscope_worker.effects import compare as module
from crosscope_worker.effects.compare import Comparison, compare
from crosscope_worker.effects.predictions import divergence, log_probabilities
from crosscope_worker.effects.subject import Subject
from crosscope_worker.models.pair import Pair
from crosscope_worker.models.places import PairError
from tests.worker.effects.subjects import (
    both_streams,
    decoupled,
    logits_of,
    make_crosscoder,
    make_pair,
    make_subject,
    prompt,
)
from tests.worker.tiny_models import VOCAB

PROMPTS = [prompt(9, 1), prompt(1), prompt(17, 2)]


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make_pair()


@pytest.fixture(scope="module")
def subject(pair: Pair) -> Subject:
    return make_subject(pair)


def test_divergences_and_log_probabilities_by_hand():
    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.25, 0.5]])
    kl = divergence(p.log(), q.log())
    torch.testing.assert_close(kl, torch.tensor([0.25 * np.log(2.0)], dtype=torch.float32))
    logits = torch.tensor([[1.0, 1.0, 1.0, -9.0]])
    torch.testing.assert_close(log_probabilities(logits, 3), torch.full((1, 3), -np.log(3.0), dtype=torch.float32))
    with pytest.raises(PairError, match=r"25\.0% of the probability .* \(it has 3 of 4\)"):
        log_probabilities(torch.zeros(1, 4), 3)


@pytest.mark.parametrize("logit_bytes", [1 << 20, 4 * 4 * VOCAB])
def test_every_figure_equals_plain_forwards(pair: Pair, monkeypatch: pytest.MonkeyPatch, logit_bytes: int):
    monkeypatch.setattr(module, "LOGIT_BYTES", logit_bytes)
    monkeypatch.setattr(module, "CACHED_BYTES", 3 * 4 * VOCAB)
    subject = make_subject(pair)
    assert subject.reading is not None
    for ids, found in zip(PROMPTS, compare(subject, PROMPTS, 4), strict=True):
        log = [logits_of(model, ids).log_softmax(1) for model in pair.models]
        for q, p, kl in ((log[BASE], log[CHAT], found.kl_chat_base), (log[CHAT], log[BASE], found.kl_base_chat)):
            expected = nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(1)
            np.testing.assert_allclose(kl, expected, rtol=1e-4, atol=1e-6)
        x = both_streams(pair, ids)
        error = x - subject.reading.crosscoder.decode(subject.reading.crosscoder.encode(x))
        for model, ours in enumerate((found.base, found.chat)):
            at = torch.arange(len(ids) - 1), torch.from_numpy(ids[1:])
            np.testing.assert_allclose(ours.log_probabilities[:-1], log[model][at], rtol=1e-5)
            assert np.isnan(ours.log_probabilities[-1])
            order = log[model].argsort(dim=1, descending=True)
            ranks = (order[:-1] == torch.from_numpy(ids[1:])[:, None]).nonzero()[:, 1] + 1
            assert ours.ranks.tolist() == [*ranks.tolist(), 0]
            np.testing.assert_allclose(ours.entropies, -(log[model].exp() * log[model]).sum(1), rtol=1e-5)
            np.testing.assert_array_equal(ours.top_ids, order[:, :4])
            np.testing.assert_allclose(ours.top_log_probabilities, log[model].gather(1, order[:, :4]), rtol=1e-5)
            own = slice(16 * model, 16 * model + 16)
            np.testing.assert_allclose(ours.norms, x[:, own].norm(dim=1), rtol=1e-5)
            np.testing.assert_allclose(ours.error_norms, error[:, own].norm(dim=1), rtol=1e-4)
        np.testing.assert_allclose(found.difference_norms, (x[:, 16:] - x[:, :16]).norm(dim=1), rtol=1e-5)
        np.testing.assert_allclose(found.cosines, torch.cosine_similarity(x[:, 16:], x[:, :16]), rtol=1e-5)


def figures(found: Comparison) -> list[np.ndarray]:
    own = [vars(found.base), vars(found.chat), {k: v for k, v in vars(found).items() if k not in ("base", "chat")}]
    return [figure for each in own for figure in each.values()]


def test_confident_predictions_keep_small_figures_exact():
    """A divergence of 1e-3 and an entropy of 1e-2 nats, far below the logits' own size."""
    draw = torch.Generator().manual_seed(0)
    base = 30 + torch.randn(6, 50, generator=draw)
    base[:, 7] += 12
    chat = 5 + base + 0.5 * torch.randn(6, 50, generator=draw)
    expected = [logits.double().log_softmax(1) for logits in (base, chat)]
    found = module._figures([module._Distribution.of(each.clone()) for each in (base, chat)], torch.full((6,), 7), 3)
    for q, p, name in ((0, 1, "kl_chat_base"), (1, 0, "kl_base_chat")):
        kl = (expected[p].exp() * (expected[p] - expected[q])).sum(1)
        torch.testing.assert_close(found[name].double(), kl, rtol=1e-4, atol=2e-7)
    for log, name in zip(expected, ("base", "chat"), strict=True):
        torch.testing.assert_close(found[f"{name}.entropies"].double(), -(log.exp() * log).sum(1), rtol=1e-4, atol=2e-7)
        torch.testing.assert_close(found[f"{name}.log_probabilities"].double(), log[:, 7], rtol=1e-4, atol=2e-7)
        assert found[f"{name}.ranks"].tolist() == [1] * 6
    same = module._Distribution.of(base.clone())
    assert module._figures([same, same], torch.full((6,), 7), 3)["kl_chat_base"].tolist() == [0.0] * 6


@pytest.mark.parametrize("kind", ["Gemma2", "GPTNeoX", "Phi3, LongRoPE"])
def test_a_prompt_s_comparison_does_not_depend_on_the_others(kind: str):
    subject = make_subject(make_pair(kind))
    prompts = [*PROMPTS, prompt(40, 3)]  # beyond LongRoPE's 32 tokens
    together = compare(subject, prompts, 3)
    for ids, found in zip(prompts, together, strict=True):
        for one, other in zip(figures(found), figures(compare(subject, [ids], 3)[0]), strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-5)


def test_without_a_crosscoder_there_are_predictions_alone(pair: Pair):
    found, read = (compare(each, PROMPTS[:1], 2)[0] for each in (Subject(pair), make_subject(pair)))
    np.testing.assert_allclose(found.kl_chat_base, read.kl_chat_base, rtol=1e-5)
    assert [len(each) for each in (found.base.norms, found.chat.error_norms, found.cosines)] == [0, 0, 0]
    assert found.base.top_ids.shape == (9, 2)
    assert compare(Subject(pair), PROMPTS[:1], 0)[0].base.top_ids.shape == (9, 0)
    assert compare(Subject(pair), PROMPTS[:1], 500)[0].chat.top_ids.shape == (9, VOCAB)


def test_reconstruction_errors_are_those_of_models_that_are_reconstructed(pair: Pair):
    x, crosscoder = both_streams(pair, PROMPTS[0]), decoupled(pair.d_model)
    error = x - crosscoder.decode(crosscoder.encode(x))
    found = compare(make_subject(pair, crosscoder), PROMPTS[:1], 0)[0]
    np.testing.assert_allclose(found.base.error_norms, error[:, :16].norm(dim=1), rtol=1e-4)
    np.testing.assert_allclose(found.chat.error_norms, error[:, 16:].norm(dim=1), rtol=1e-4)
    for streams, lengths in ((DIFFERENCE, [0, 0]), (STREAMS["chat"], [0, 9])):
        found = compare(make_subject(pair, make_crosscoder(pair.d_model, streams)), PROMPTS[:1], 0)[0]
        assert [len(found.base.error_norms), len(found.chat.error_norms)] == lengths


def test_streams_of_different_width_have_no_difference(pair: Pair):
    other = make_pair(changed={"hidden_size": 32})
    mixed = Pair(pair.manifest, (pair.models[0], other.models[1]), pair.tokenizer, pair.device)
    found = compare(make_subject(mixed), PROMPTS[:1], 1)[0]
    assert len(found.difference_norms) == len(found.cosines) == 0
    assert len(found.base.norms) == len(found.chat.error_norms) == 9


def test_padded_vocabularies_are_compared_over_the_ids_that_both_have(pair: Pair):
    padded = make_pair(changed={"tie_word_embeddings": False}, chat_vocab=VOCAB + 3)
    head = padded.models[CHAT].get_output_embeddings()
    assert isinstance(head, nn.Linear)
    ids = PROMPTS[0]
    with pytest.raises(PairError, match="of the probability to ids that the other model lacks"):
        compare(Subject(padded), [ids], 1)
    # A constant dimension of the head's input makes the padding improbable.
    norm = padded.models[CHAT].get_decoder().norm
    wrapped = norm.forward
    norm.forward = lambda x: torch.cat([torch.ones_like(x[..., :1]), wrapped(x)[..., 1:]], dim=-1)
    with torch.no_grad():
        head.weight[VOCAB:, 0] = -100
    found = compare(Subject(padded), [ids], 70)[0]
    log = [logits_of(model, ids)[:, :VOCAB].log_softmax(1) for model in padded.models]
    expected = nn.functional.kl_div(log[BASE], log[CHAT], reduction="none", log_target=True).sum(1)
    np.testing.assert_allclose(found.kl_chat_base, expected, rtol=1e-4)
    assert found.chat.top_ids.max() < VOCAB


def test_an_id_that_a_model_cannot_read_is_refused(subject: Subject):
    with pytest.raises(PairError, match=f"token id {VOCAB} has no embedding"):
        compare(subject, [np.array([1, VOCAB])], 1)
