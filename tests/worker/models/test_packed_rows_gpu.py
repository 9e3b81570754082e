"""Rows of many texts on a GPU: the kernel, compiled layers, and both models of Gemma 2's kind at once."""

from collections.abc import Generator

import numpy as np
import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from crosscope_proto.artefacts import PairManifest
from crosscope_proto.specs import TokenPolicy
from crosscope_worker.data.harvest import harvest
from crosscope_worker.data.prefetch import PrefetchedSource
from crosscope_worker.data.texts import Text
from crosscope_worker.models.activations import PairActivations
from crosscope_worker.models.packed_rows import graphs_compiled
from crosscope_worker.models.pair import Pair
from crosscope_worker.precision import float32_products
from tests.worker.devices import needs_gpu
from tests.worker.triton_runs import needs_triton

ROW, VOCAB = 1024, 1000

pytestmark = [
    pytest.mark.gpu,
    needs_gpu,
    needs_triton,
    # torch's compiler warns of its own workers and of units that it does not use.
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def gemma(seed: int, dtype: torch.dtype) -> Gemma2ForCausalLM:
    """Heads of Gemma 2 2B, two layers with a window of 64 tokens and two without, and scores that are capped."""
    config = Gemma2Config(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=256,
        query_pre_attn_scalar=256,
        sliding_window=64,
        attn_logit_softcapping=2.0,
        initializer_range=0.1,
        attn_implementation="eager",  # pyright: ignore[reportCallIssue]
    )
    torch.manual_seed(seed)
    model = Gemma2ForCausalLM(config).eval().requires_grad_(False)
    return model.to(device="cuda", dtype=dtype)  # pyright: ignore[reportCallIssue]


def texts_of(num: int, seed: int) -> list[Text]:
    draw = np.random.default_rng(seed)
    ids = [draw.integers(3, VOCAB, length) for length in draw.integers(1, 400, num)]
    return [Text(0, each, np.ones(len(each), np.uint8)) for each in ids]


class _Source:
    """The blocks of a harvest."""

    def __init__(self, texts: list[Text], activations: PairActivations) -> None:
        self._texts, self._activations = texts, activations

    def blocks(self) -> Generator[torch.Tensor]:
        for found in harvest(self._texts, self._activations, TokenPolicy(skip_bos=False), ROW):
            yield found.x

    def fraction(self) -> float:
        return 0.0

    def state(self) -> dict[str, object]:
        return {}

    def restore(self, state: dict[str, object]) -> None: ...


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 0.06), (torch.float32, 1e-2)])
def test_a_harvest_on_a_thread_gives_the_activations_of_texts_alone(
    tiny_pair: Pair, dtype: torch.dtype, most: float
) -> None:
    """Two graphs, one for each kind of layer, serve both models; none is compiled while tokens are read."""
    torch.compiler.reset()
    manifest = PairManifest(name="random", base="base", chat="chat", tokenizer="chat")
    models = gemma(0, dtype), gemma(1, dtype)
    pair = Pair(manifest, models, tiny_pair.tokenizer, torch.device("cuda"), long_rows=True)
    activations = PairActivations(pair, 2)
    with float32_products("tf32"):
        before = graphs_compiled()
        assert activations.packs_rows(ROW), activations.about_rows(ROW)
        assert "2 graphs of compiled layers" in activations.about_rows(ROW)
        texts = texts_of(120, 0)
        found = torch.cat(list(PrefetchedSource(_Source(texts, activations), pair.device).blocks()))
        assert graphs_compiled() - before == 2
    plain = PairActivations(Pair(manifest, models, tiny_pair.tokenizer, pair.device), 2)
    alone = torch.cat([plain.rows(torch.from_numpy(text.ids)[None])[0] for text in texts])
    error = (found - alone).norm(dim=-1) / alone.norm(dim=-1)
    assert float(error.max()) < most, activations.about_rows(ROW)
