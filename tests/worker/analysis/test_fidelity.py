"""Splicing and the causal patch, against known cases and a plain evaluation without hooks."""

import copy
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from crosscope_proto.artefacts import PairManifest
from crosscope_proto.roles import TEMPLATE_ROLES, TokenRole
from crosscope_proto.specs import AnalysisSpec, TokenPolicy
from crosscope_worker.analysis import fidelity as module
from crosscope_worker.analysis import whole_texts
from crosscope_worker.analysis.fidelity import fidelity, patched_latents
from crosscope_worker.analysis.whole_texts import Splicing
from crosscope_worker.data.harvest import HarvestError
from crosscope_worker.data.texts import Text
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.dictionary.keep import AboveModelThresholds, AboveThreshold
from crosscope_worker.dictionary.streams import DIFFERENCE
from crosscope_worker.models.activations import PairActivations
from crosscope_worker.models.pair import Pair
from crosscope_worker.tokenizer.tokens import TextTokenizer, Turn
from crosscope_worker.work import silent
from tests.worker.devices import needs_gpu

LAYER, WIDTH = 1, 32
SPEC = AnalysisSpec(spliced_tokens=100_000)
SPLICING = {
    f"{kind}_{model}" for kind in ("ce_clean", "ce_spliced", "ce_zero", "ce_recovered") for model in ("base", "chat")
}
SPLICING |= {f"kl_{kind}_{model}" for kind in ("spliced", "zero", "recovered") for model in ("base", "chat")}
PATCHING = {f"kl_{kind}_{group}" for kind in ("base", "patch", "full") for group in ("all", "first9", "template")}
PATCHING |= {"patch_latents"}


@pytest.fixture(scope="module")
def documents(tokenizer: TextTokenizer) -> list[Text]:
    lines = (
        "the baker in the village makes fresh bread",
        "two plus three",
        "the red fox sells it at the old market today",
    )
    return [text_of(tokenizer.text(line)) for line in lines]


@pytest.fixture(scope="module")
def chats(tokenizer: TextTokenizer) -> list[Text]:
    """Conversations; the second has two assistant messages, one of more and one of fewer than nine tokens."""
    story = Turn("assistant", "the red fox and the old river, every morning i hope this helps, have a nice day!")
    turns = [
        [Turn("user", "what is two plus three?"), Turn("assistant", "five.")],
        [Turn("user", "tell me a story"), story, Turn("user", "please"), Turn("assistant", "sorry")],
    ]
    return [text_of(tokenizer.conversation(each)) for each in turns]


def text_of(tokens) -> Text:
    return Text(0, tokens.ids, tokens.roles)


def perfect(d_model: tuple[int, int] = (WIDTH, WIDTH)) -> Crosscoder:
    """A crosscoder with a latent for each half axis: `relu(x) - relu(-x)` is x. The second half of each model's latents
    belong to it alone.
    """
    both = sum(d_model)
    rows = torch.cat([torch.eye(both), -torch.eye(both)])
    return Crosscoder(
        rows.T.clone(), torch.zeros(2 * both), rows, torch.zeros(both), d_model, "batch_topk", keep=AboveThreshold(0.0)
    )


def difference(num_latents: int = 2 * WIDTH) -> Crosscoder:
    """Reads and writes `x^chat - x^base` exactly."""
    unit = torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)])[:num_latents]
    W_dec = torch.cat([torch.zeros_like(unit), unit], dim=1)
    bias = torch.zeros(2 * WIDTH)
    return Crosscoder(
        torch.cat([-unit, unit], dim=1).T,
        torch.zeros(num_latents),
        W_dec,
        bias,
        (WIDTH, WIDTH),
        "diff_sae",
        streams=DIFFERENCE,
    )


def random_crosscoder(num_latents: int = 24) -> Crosscoder:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return Crosscoder(
        W_enc=normal(2 * WIDTH, num_latents),
        b_enc=normal(num_latents),
        W_dec=normal(num_latents, 2 * WIDTH) / 4,
        b_dec=normal(2 * WIDTH),
        d_model=(WIDTH, WIDTH),
        variant="batch_topk",
        keep=AboveThreshold(2.0),
        input_scale=(0.5, 2.0),
        input_mean=normal(2 * WIDTH) / 8,
    )


def measure(crosscoder, pair, texts, patched=(), spec=SPEC, policy=None) -> dict[str, float]:
    ids = torch.tensor(patched, dtype=torch.int64)
    splicing = Splicing(PairActivations(pair, LAYER), texts, policy or TokenPolicy())
    return fidelity(crosscoder, splicing, ids, spec.spliced_tokens, silent)


def test_a_perfect_crosscoder_recovers_everything(tiny_pair, documents, chats):
    crosscoder = perfect()
    figures = measure(crosscoder, tiny_pair, documents + chats, patched=range(crosscoder.num_latents))
    assert set(figures) == SPLICING | PATCHING
    for model in ("base", "chat"):
        assert figures[f"kl_spliced_{model}"] == pytest.approx(0, abs=1e-6)
        assert figures[f"kl_recovered_{model}"] == pytest.approx(1, abs=1e-4)
        assert figures[f"ce_spliced_{model}"] == pytest.approx(figures[f"ce_clean_{model}"], abs=1e-6)
        assert figures[f"ce_recovered_{model}"] == pytest.approx(1, abs=1e-3)
        assert figures[f"kl_zero_{model}"] > 1e-3
    for group in ("all", "first9", "template"):
        assert figures[f"kl_base_{group}"] > 1e-4
        assert figures[f"kl_patch_{group}"] == pytest.approx(0, abs=1e-6)
        assert figures[f"kl_full_{group}"] == pytest.approx(0, abs=1e-6)


def test_a_crosscoder_that_decodes_to_nothing_recovers_nothing(tiny_pair, documents, chats):
    crosscoder = perfect()
    figures = measure(replace(crosscoder, W_dec=torch.zeros_like(crosscoder.W_dec)), tiny_pair, documents + chats)
    for model in ("base", "chat"):
        assert figures[f"ce_recovered_{model}"] == figures[f"kl_recovered_{model}"] == 0
        assert figures[f"ce_spliced_{model}"] == figures[f"ce_zero_{model}"]
    assert figures["kl_patch_all"] == figures["kl_full_all"] == figures["kl_base_all"] > 0
    assert figures["patch_latents"] == 0


def test_cross_entropy_is_that_of_transformers(tiny_pair, documents):
    ids = torch.from_numpy(documents[2].ids)[None]
    figures = measure(perfect(), tiny_pair, documents[2:], policy=TokenPolicy(skip_bos=False))
    for name, model in zip(("base", "chat"), tiny_pair.models, strict=True):
        assert figures[f"ce_clean_{name}"] == pytest.approx(float(model(input_ids=ids, labels=ids).loss), rel=1e-5)


def halves(model: PreTrainedModel) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The layers up to LAYER without a final norm, and the layers above as a model that reads the former's output."""
    below, above = copy.deepcopy(model).double(), copy.deepcopy(model).double()
    for part, layers in ((below, slice(0, LAYER + 1)), (above, slice(LAYER + 1, None))):
        part.model.layers = part.model.layers[layers]
        part.config.layer_types = part.config.layer_types[layers]
        part.config.num_hidden_layers = len(part.model.layers)
    below.model.norm = nn.Identity()
    return below, above


def plain(
    crosscoder: Crosscoder, pair: Pair, texts: list[Text], patched: list[int], policy: TokenPolicy
) -> dict[str, float]:
    """The same figures text by text, in float64, without hooks or padding."""
    cc = crosscoder
    scale = np.repeat(cc.input_scale, cc.d_model)
    base_part, chat_part = slice(0, WIDTH), slice(WIDTH, None)
    split = [halves(model) for model in pair.models]
    values: dict[str, list[float]] = defaultdict(list)

    def log_probs(model: int, x: np.ndarray) -> np.ndarray:
        logits = split[model][1](inputs_embeds=torch.from_numpy(x)[None], use_cache=False).logits[0]
        return logits.detach().log_softmax(dim=-1).numpy()

    def positions(text: Text) -> Iterator[int]:
        return (p for p in range(policy.skip_first, len(text.ids)) if text.roles[p] != TokenRole.BOS)

    for text in texts:
        ids = torch.from_numpy(text.ids)[None]
        with torch.no_grad():
            x = np.concatenate([below.model(input_ids=ids).last_hidden_state[0].numpy() for below, _ in split], axis=1)
            kept = list(positions(text))
            mean = 0.0 if cc.input_mean is None else cc.input_mean.double().numpy()
            code = np.maximum((x[kept] - mean) * scale @ cc.W_enc.double().numpy() + cc.b_enc.double().numpy(), 0)
            norms = np.linalg.norm(cc.decoder(0), axis=1) + np.linalg.norm(cc.decoder(1), axis=1)
            code *= code * norms > cc.keep.threshold
            rows = cc.W_dec.double().numpy() / scale
            x_hat = code @ rows + cc.b_dec.double().numpy() / scale + mean
            change = rows[:, chat_part] - rows[:, base_part]
            base = x[kept][:, base_part]
            inputs = {
                ("spliced", 0): x_hat[:, base_part],
                ("zero", 0): 0 * base,
                ("spliced", 1): x_hat[:, chat_part],
                ("zero", 1): 0 * base,
                ("base", 1): base,
                ("patch", 1): base + code[:, patched] @ change[patched],
                ("full", 1): base + code @ change,
            }
            clean = [log_probs(model, x[:, part]) for model, part in enumerate((base_part, chat_part))]
            predicting = [p for p in kept if p + 1 < len(text.ids)]
            starts = [p for p in range(1, len(text.ids)) if text.roles[p] == 7 and text.roles[p - 1] != 7]
            for (kind, model), replacement in inputs.items():
                whole = x[:, (base_part, chat_part)[model]].copy()
                whole[kept] = replacement
                found, name = log_probs(model, whole), ("base", "chat")[model]
                for p in predicting:
                    kl = float((np.exp(clean[model][p]) * (clean[model][p] - found[p])).sum())
                    if kind in ("spliced", "zero"):
                        values[f"ce_clean_{name}"].append(-clean[model][p, text.ids[p + 1]])
                        values[f"ce_{kind}_{name}"].append(-found[p, text.ids[p + 1]])
                        values[f"kl_{kind}_{name}"].append(kl)
                        continue
                    if text.roles[p + 1] == TokenRole.ASSISTANT:
                        values[f"kl_{kind}_all"].append(kl)
                        if p + 1 - max(start for start in starts if start <= p + 1) < 9:
                            values[f"kl_{kind}_first9"].append(kl)
                    if starts and text.roles[p] in TEMPLATE_ROLES:
                        values[f"kl_{kind}_template"].append(kl)
    return {name: float(np.mean(each)) for name, each in values.items()}


@pytest.mark.parametrize("policy", [TokenPolicy(), TokenPolicy(skip_first=6)])
def test_a_plain_evaluation_gives_the_same(tiny_pair, documents, chats, policy: TokenPolicy):
    crosscoder, patched = random_crosscoder(), [2, 3, 11, 20]
    texts = [chats[0], documents[0], documents[1], chats[1], documents[2]]
    figures = measure(crosscoder, tiny_pair, texts, patched, policy=policy)
    expected = plain(crosscoder, tiny_pair, texts, patched, policy)
    assert set(expected) == {name for name in figures if "recovered" not in name} - {"patch_latents"}
    assert {name: figures[name] for name in expected} == pytest.approx(expected, rel=2e-4, abs=1e-7)
    assert figures["patch_latents"] == 4
    for model in ("base", "chat"):
        clean, spliced, zero = (expected[f"ce_{kind}_{model}"] for kind in ("clean", "spliced", "zero"))
        assert figures[f"ce_recovered_{model}"] == pytest.approx((zero - spliced) / (zero - clean), rel=0.02)
        recovered = 1 - expected[f"kl_spliced_{model}"] / expected[f"kl_zero_{model}"]
        assert figures[f"kl_recovered_{model}"] == pytest.approx(recovered, rel=1e-3)


def test_sizes_of_pieces_do_not_matter(tiny_pair, documents, chats, monkeypatch: pytest.MonkeyPatch):
    texts = documents + chats + documents
    at_once = measure(random_crosscoder(), tiny_pair, texts, [0, 5])
    monkeypatch.setattr(whole_texts, "BATCH_TOKENS", 30)
    monkeypatch.setattr(module, "CODE_BYTES", 24 * 4 * 5)
    monkeypatch.setattr(module, "LOGIT_BYTES", 400 * 4 * 3)
    assert measure(random_crosscoder(), tiny_pair, texts, [0, 5]) == pytest.approx(at_once, rel=1e-4, abs=1e-6)


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_gives_the_same(tiny_pair, documents, chats):
    base, chat = (copy.deepcopy(model).to("cuda") for model in tiny_pair.models)
    pair = Pair(tiny_pair.manifest, (base, chat), tiny_pair.tokenizer, torch.device("cuda"))
    expected = measure(random_crosscoder(), tiny_pair, documents + chats, [0, 5])
    found = measure(random_crosscoder().to("cuda"), pair, documents + chats, [0, 5])
    assert found == pytest.approx(expected, rel=1e-2, abs=1e-4)


def test_outliers_keep_their_own_activation(tiny_pair, documents):
    crosscoder = perfect()
    zero = replace(crosscoder, W_dec=torch.zeros_like(crosscoder.W_dec))
    figures = measure(zero, tiny_pair, documents, policy=TokenPolicy(max_norm_ratio=1.0))
    every = measure(zero, tiny_pair, documents)
    assert 0 < figures["kl_spliced_base"] != every["kl_spliced_base"]


def test_texts_are_read_until_enough_tokens_were_kept(tiny_pair, documents):
    given = iter(documents * 10)
    seen: list[str] = []

    def progress(stage: str, fraction: float, message: str = "", **_: object) -> None:
        assert (stage, fraction) == ("fidelity", float(bool(seen)))
        seen.append(message)

    first = sum(len(text.ids) - 1 for text in documents[:2])
    splicing = Splicing(PairActivations(tiny_pair, LAYER), given, TokenPolicy())
    figures = fidelity(perfect(), splicing, torch.empty(0, dtype=torch.int64), first, progress)
    assert seen[1:] == [f"{first} of {first} tokens spliced"]
    assert next(given) is documents[2]
    assert set(figures) == SPLICING


def test_a_forward_is_no_larger_than_it_may_be(monkeypatch: pytest.MonkeyPatch, tiny_pair):
    monkeypatch.setattr(whole_texts, "BATCH_TOKENS", 30)
    texts = [Text(0, np.arange(length), np.ones(length, np.uint8)) for length in (20, 5, 5, 16, 40, 10, 10, 10)]
    batches = whole_texts.batches(texts, 10_000, TokenPolicy(), PairActivations(tiny_pair, LAYER))
    lengths = [[len(text.ids) for text in batch] for batch in batches]
    assert lengths == [[20], [5, 5], [16], [40], [10, 10, 10]]


def test_zero_tokens_measure_nothing(tiny_pair, documents):
    given = iter(documents)
    assert measure(perfect(), tiny_pair, given, spec=AnalysisSpec(spliced_tokens=0)) == {}
    assert next(given) is documents[0]


def test_models_of_different_width_have_no_patch(tiny_pair, make_gemma, chats):
    torch.manual_seed(0)
    wide = make_gemma(len(tiny_pair.tokenizer), hidden_size=48).eval()
    manifest = PairManifest(name="uneven", base="base", chat="chat", tokenizer="chat")
    pair = Pair(manifest, (tiny_pair.models[0], wide), tiny_pair.tokenizer, torch.device("cpu"))
    figures = measure(perfect((32, 48)), pair, chats, patched=[1])
    assert set(figures) == SPLICING
    assert figures["kl_spliced_chat"] == pytest.approx(0, abs=1e-6)


def test_a_dictionary_of_differences_is_patched_and_not_spliced(tiny_pair, documents, chats):
    figures = measure(difference(), tiny_pair, documents + chats, patched=[0, 1, 2])
    assert set(figures) == PATCHING
    assert figures["kl_full_all"] == pytest.approx(0, abs=1e-6)
    assert 1e-4 < figures["kl_patch_all"] != figures["kl_base_all"]
    assert measure(difference(), tiny_pair, documents) == {}


def test_a_decoupled_code_adds_what_each_model_keeps(tiny_pair, chats):
    """Half of the latents write to both models; the base model's threshold cuts them off, the chat model's does not."""
    generator = torch.Generator().manual_seed(0)
    whole = perfect()
    rows = torch.cat([whole.W_dec[:, :WIDTH] * 0, whole.W_dec[:, WIDTH:]], dim=1)
    both = rows.clone()
    both[:, :WIDTH] = torch.randn(both[:, :WIDTH].shape, generator=generator)
    thresholds = torch.stack([torch.full((whole.num_latents,), 1e9), torch.zeros(whole.num_latents)])
    decoupled = replace(whole, W_dec=both, code_normalisation="decoupled", keep=AboveModelThresholds(thresholds))
    patched = range(0, 128, 3)
    figures = measure(decoupled, tiny_pair, chats, patched)
    assert figures == pytest.approx(measure(replace(whole, W_dec=rows), tiny_pair, chats, patched), rel=1e-5, abs=1e-8)


def test_an_activation_that_is_not_finite_is_named(tiny_pair, documents):
    model = copy.deepcopy(tiny_pair.models[1])
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone(), requires_grad=False)
    model.model.embed_tokens.weight[documents[1].ids[1]] = torch.nan
    pair = Pair(tiny_pair.manifest, (tiny_pair.models[0], model), tiny_pair.tokenizer, torch.device("cpu"))
    texts = [documents[0], replace(documents[1], place="web.txt, line 2")]
    with pytest.raises(HarvestError, match=r"web.txt, line 2, token 1: the chat model's activation is not finite"):
        measure(perfect(), pair, texts)


def table(**columns: list[float] | list[str]) -> pa.Table:
    return pa.table(columns)


def test_living_chat_only_latents_are_patched():
    classes = ["chat_only", "shared", "chat_only", "dead"]
    latents = table(latent_class=classes, rel_norm=[0.95, 0.5, 0.91, 0.99], num_active=[3, 9, 1, 0])
    assert patched_latents(latents).tolist() == [0, 2]


def test_without_chat_only_latents_the_nearest_of_the_living_are_patched():
    rel_norm = [float("nan"), 0.99, *[0.5 + i / 1000 for i in range(40)]]
    classes = ["other", "dead"] + ["shared"] * 40
    latents = table(latent_class=classes, rel_norm=rel_norm, num_active=[5, 0] + [7] * 40)
    assert patched_latents(latents).tolist() == [40, 41]
    assert patched_latents(latents.slice(0, 3)).tolist() == [2]
    assert patched_latents(latents.slice(1, 1)).tolist() == []


def test_the_smallest_base_shares_are_patched_in_a_dictionary_of_differences():
    columns = {"latent_class": ["other"] * 4, "rel_norm": [float("nan")] * 4, "num_active": [1, 1, 1, 0]}
    latents = table(**columns, beta_act_chat=[1.0, -2.0, 0.0, 1.0], beta_act_base=[0.9, 0.8, 0.0, 0.0])
    assert patched_latents(latents).tolist() == [1]
