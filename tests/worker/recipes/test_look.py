"""A look at tiny pairs whose difference is planted: at one layer, or in the last layer's output."""

import copy
import json
import math
import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from crosscope_proto.artefacts import PAIR_MANIFEST, PairManifest, look_folder
from crosscope_proto.looks import MANIFEST, TABLES
from crosscope_proto.manifest import parse_look_manifest
from crosscope_proto.recipe import LookRecipe, parse_recipe
from crosscope_proto.roles import TokenRole
from crosscope_proto.stages import STAGES
from crosscope_worker.analysis.looks.heads import Heads
from crosscope_worker.analysis.looks.sweep import LayerShares, recommend, swept_layers
from crosscope_worker.data.texts import DataError
from crosscope_worker.effects.answer import Answer
from crosscope_worker.effects.orders import EndReason
from crosscope_worker.models.pair import Pair
from crosscope_worker.models.places import PairError
from crosscope_worker.recipes.look import make_look
from crosscope_worker.tokenizer.tokens import TextTokenizer
from crosscope_worker.work import Cancelled, LostClaim, Workspace, silent
from tests.worker.conftest import gemma_tokenizer, random_gemma
from tests.worker.tiny_models import tiny_model

PLANTED = 2
"""The layer at which the chat model of the pair "planted" differs."""


def save_pair(home: Path, name: str, base: Any, chat: Any) -> None:
    folder, tokenizer = home / "pairs" / name, gemma_tokenizer()
    for role, model in (("base", base), ("chat", chat)):
        model.save_pretrained(folder / role)
        tokenizer.save_pretrained(folder / role)
    (folder / PAIR_MANIFEST).write_text(json.dumps(asdict(PairManifest(name, "base", "chat", "chat"))))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("look")
    torch.manual_seed(0)
    base = random_gemma(len(gemma_tokenizer()))
    chat = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in chat.model.layers[PLANTED].parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    save_pair(home, "planted", base, chat)
    wide = random_gemma(len(gemma_tokenizer()), hidden_size=48)
    save_pair(home, "wide", base, wide)
    save_pair(home, "same", base, base)
    draw = random.Random(0)
    words = ("the", "red", "fox", "sees", "a", "small", "bird", "and", "baker", "makes", "fresh", "bread", "in")

    def sentence() -> str:
        return " ".join(draw.choices(words, k=draw.randint(4, 12)))

    chats = [
        {"turns": [{"role": "user", "content": sentence()}, {"role": "assistant", "content": "sorry " + sentence()}]}
        for _ in range(12)
    ]
    (home / "web.jsonl").write_text("".join(json.dumps({"text": sentence()}) + "\n" for _ in range(12)))
    (home / "chats.jsonl").write_text("".join(json.dumps(each) + "\n" for each in chats))
    return home


def recipe_of(pair: str, **changed: Any) -> LookRecipe:
    text = f"""
kind: look
name: {pair}
pair: {{name: {pair}}}
data:
  - {{name: web, source: jsonl, path: web.jsonl, text_column: text}}
  - {{name: chats, source: jsonl, path: chats.jsonl, chat_column: turns}}
num_findings: 30
sweep_tokens: 20
num_prompts: 2
max_new_tokens: 5
num_conversations: 4
chat_template_date: 2026-11-01
"""
    recipe = parse_recipe(text)
    assert isinstance(recipe, LookRecipe)
    return replace(recipe, **changed)


def workspace_of(home: Path, job: str = "job") -> Workspace:
    return Workspace(home, home / "jobs" / job, lambda: None)


def tables_of(home: Path, name: str) -> dict[str, list[dict[str, Any]]]:
    folder = Path(look_folder(home, name))
    return {Path(file).stem: pq.read_table(folder / file).to_pylist() for file in TABLES}


@pytest.fixture(scope="module")
def planted(home: Path):
    reports: list[tuple[str, float]] = []

    def progress(stage: str, fraction: float, *_: object, **__: object) -> None:
        reports.append((stage, fraction))

    manifest = make_look(recipe_of("planted"), workspace_of(home, "planted"), progress)
    return manifest, tables_of(home, "planted"), reports


def test_the_sweep_finds_the_layer_at_which_the_difference_was_planted(planted) -> None:
    manifest, tables, _ = planted
    assert manifest.layers == (0, 1, 2, 3)
    assert manifest.num_layers == 4
    for row in tables["layers"]:
        expected = 0.0 if row["layer"] < PLANTED else 1.0
        # BOS is left out: each model keeps its own there, and layers above read it.
        assert row["share_base"] == pytest.approx(expected, abs=0.02 if expected else 1e-3), row
        assert row["share_chat"] == pytest.approx(expected, abs=0.02 if expected else 1e-3), row
        assert 0 <= row["share_chat_se"] < 0.05
    assert manifest.recommended_layer == PLANTED
    assert "Layer 2 of 4 is the lowest swept layer that carries at least 70%" in manifest.reason
    assert manifest.sweep_tokens == 20
    assert 1 < manifest.sweep_texts <= 20


def test_with_bos_exchanged_too_the_streams_carry_everything(home: Path) -> None:
    recipe = recipe_of("planted", name="bos", num_prompts=0)
    make_look(replace(recipe, tokens=replace(recipe.tokens, skip_bos=False)), workspace_of(home, "bos"), silent)
    for row in tables_of(home, "bos")["layers"]:
        expected = 0.0 if row["layer"] < PLANTED else 1.0
        assert row["share_base"] == pytest.approx(expected, abs=1e-4), row
        assert row["share_chat"] == pytest.approx(expected, abs=1e-4), row


def test_kl_of_a_raised_logit_is_the_one_worked_out_by_hand() -> None:
    # base: all 61 tokens equally likely. chat: one logit is higher by 2, so p = e^2 / (e^2 + 60).
    models = [tiny_model("Llama"), tiny_model("Llama")]
    for model, raised in zip(models, (0.0, 2.0), strict=True):
        model.lm_head = torch.nn.Linear(16, 61)
        with torch.no_grad():
            model.lm_head.weight.zero_()
            model.lm_head.bias.zero_()
            model.lm_head.bias[7] = raised
    manifest = PairManifest("raised", "base", "chat", "chat")
    pair = Pair(manifest, (models[0], models[1]), gemma_tokenizer(), torch.device("cpu"))
    probability = math.exp(2) / (math.exp(2) + 60)
    by_hand = 2 * probability - math.log((math.exp(2) + 60) / 61)
    found = Heads(pair).kl(torch.randn(5, 32))
    torch.testing.assert_close(found, torch.full((5,), by_hand), atol=1e-6, rtol=1e-5)


def test_models_of_unequal_depth_are_refused() -> None:
    models = tiny_model("Llama"), tiny_model("Llama", num_hidden_layers=2)
    pair = Pair(PairManifest("deep", "base", "chat", "chat"), models, gemma_tokenizer(), torch.device("cpu"))
    with pytest.raises(PairError, match="3 layers and the chat model 2"):
        Heads(pair)


def test_kl_is_that_of_both_models_whole(home: Path, planted) -> None:
    from transformers import AutoModelForCausalLM

    _, tables, _ = planted
    base, chat = (
        AutoModelForCausalLM.from_pretrained(home / "pairs" / "planted" / name, attn_implementation="eager").eval()
        for name in ("base", "chat")
    )
    for text in tables["texts"]:
        ids = torch.tensor([text["token_ids"]])
        with torch.no_grad():
            p, q = (model(ids).logits[0].double().log_softmax(-1) for model in (chat, base))
        kl = (p.exp() * (p - q)).sum(-1).numpy()
        found = np.array(text["kl"])
        assert math.isnan(found[0])
        assert text["roles"][0] == TokenRole.BOS
        np.testing.assert_allclose(found[1:], kl[1:], atol=2e-5)
        assert text["sum"] == pytest.approx(kl[1:].sum(), rel=1e-4)
        assert text["num_tokens"] == len(kl) - 1
    for finding in tables["findings"]:
        text = tables["texts"][finding["text"]]
        assert finding["kl"] == pytest.approx(text["kl"][finding["position"]])
    strongest = tables["findings"][0]
    ids = torch.tensor([tables["texts"][strongest["text"]]["token_ids"][: strongest["position"] + 1]])
    with torch.no_grad():
        top = chat(ids).logits[0, -1].log_softmax(-1).topk(5)
    assert strongest["chat_ids"] == top.indices.tolist()
    np.testing.assert_allclose(strongest["chat_log_probabilities"], top.values, atol=1e-4)


def test_counts_and_shares_add_up(planted) -> None:
    manifest, tables, _ = planted
    for kind in ("dataset", "role"):
        groups = [each for each in tables["groups"] if each["kind"] == kind]
        assert sum(each["num_tokens"] for each in groups) == manifest.num_tokens
        assert sum(each["share"] for each in groups) == pytest.approx(1.0)
        assert sum(each["num_tokens"] * each["mean"] for each in groups) == pytest.approx(manifest.figures["sum_kl"])
    assert manifest.num_texts == 24
    assert {each["name"] for each in tables["groups"]} >= {"web", "chats", "text", "user", "assistant", "header"}
    per_text = np.bincount([each["text"] for each in tables["findings"]])
    assert per_text.max() <= 3
    assert len(tables["findings"]) == 30
    kls = [each["kl"] for each in tables["findings"]]
    assert kls == sorted(kls, reverse=True)
    ranked = [each for each in tables["texts"] if each["rank"]]
    assert sorted(each["rank"] for each in ranked) == [1, 2, 3, 4]
    assert [each["rank"] for each in sorted(ranked, key=lambda each: -each["mean"])] == [1, 2, 3, 4]
    assert manifest.num_folded >= 0


def test_first_positions_differ_from_the_planted_layer_on(planted) -> None:
    _, tables, _ = planted
    assert {(each["layer"], each["position"]) for each in tables["first"]} == {
        (a, b) for a in range(4) for b in range(5)
    }
    for row in tables["first"]:
        assert row["num_texts"] == 12
        assert (row["norm"] > 0.1) == (row["layer"] >= PLANTED)
        assert len(row["tokens_base"]) == len(row["tokens_chat"]) == (8 if row["layer"] >= PLANTED else 0)


def test_continuations_are_greedy(home: Path, planted) -> None:
    from transformers import AutoModelForCausalLM

    _, tables, _ = planted
    tokenizer = gemma_tokenizer()
    assert len(tables["continuations"]) == 2
    for row in tables["continuations"]:
        assert row["pieces"][-2:] == ["odel", "\n"]
        assert row["dataset"] == "chats"
        chat = AutoModelForCausalLM.from_pretrained(home / "pairs/planted/chat", attn_implementation="eager").eval()
        ids = list(row["token_ids"])
        for _ in range(5):
            with torch.no_grad():
                ids.append(int(chat(torch.tensor([ids])).logits[0, -1].argmax()))
        answer = Answer(TextTokenizer(tokenizer), tokenizer.convert_tokens_to_ids(["<eos>", "<end_of_turn>"]), (), 5, 9)
        reasons = [answer.take(id_)[1] for id_ in ids[len(row["token_ids"]) :]]
        assert (row["chat_text"], row["chat_ended"]) == (answer.text, EndReason.TURN_END in reasons)


def test_progress_goes_through_the_stages_in_order(planted) -> None:
    _, _, reports = planted
    seen = list(dict.fromkeys(stage for stage, _ in reports))
    assert seen == [str(stage) for stage, _ in STAGES["look"]]
    assert all(0 <= fraction <= 1 for _, fraction in reports)


def test_a_job_that_has_written_its_look_does_not_look_again(home: Path, planted) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("it looks again")

    assert make_look(recipe_of("planted"), workspace_of(home, "planted"), never).job == "planted"


@pytest.mark.parametrize("stage", ["scan", "sweep", "continue", "publish"])
def test_a_cancelled_job_leaves_the_earlier_look(home: Path, planted, stage: str) -> None:
    def progress(now: str, fraction: float, *_: object, **__: object) -> None:
        if now == stage:
            raise Cancelled

    with pytest.raises(Cancelled):
        make_look(recipe_of("planted"), workspace_of(home, "second"), progress)
    folder = Path(look_folder(home, "planted"))
    assert parse_look_manifest((folder / MANIFEST).read_bytes()).job == "planted"
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


def test_a_fence_that_refuses_leaves_the_earlier_look(home: Path, planted) -> None:
    def refuse() -> None:
        raise LostClaim

    workspace = Workspace(home, home / "jobs" / "third", refuse)
    with pytest.raises(LostClaim):
        make_look(recipe_of("planted", num_prompts=0, sweep_tokens=0), workspace, silent)
    assert parse_look_manifest((Path(look_folder(home, "planted")) / MANIFEST).read_bytes()).job == "planted"


def test_models_of_unequal_width_are_compared_but_not_swept(home: Path) -> None:
    manifest = make_look(recipe_of("wide", num_prompts=0), workspace_of(home, "wide"), silent)
    tables = tables_of(home, "wide")
    assert manifest.recommended_layer is None
    assert tables["layers"] == []
    assert tables["first"] == []
    assert "width 32 and 48" in manifest.unavailable["sweep"]
    assert "width 32 and 48" in manifest.reason
    assert tables["findings"]
    assert manifest.figures["mean_kl"] > 0


def test_equal_models_have_no_findings(home: Path) -> None:
    manifest = make_look(recipe_of("same"), workspace_of(home, "same"), silent)
    assert manifest.figures["max_kl"] == 0
    assert manifest.recommended_layer is None
    assert "predict the same at every token" in manifest.reason
    assert tables_of(home, "same")["findings"] == []


def test_models_of_different_vocabularies_are_refused(home: Path) -> None:
    """A random head gives three more ids about 3 / (its size) of the probability."""
    torch.manual_seed(0)
    num_ids = len(gemma_tokenizer())
    save_pair(home, "more-ids", random_gemma(num_ids), random_gemma(num_ids + num_ids // 4))
    with pytest.raises(PairError, match=r"a model gives \d+\.\d% of the probability to ids that the other model lacks"):
        make_look(recipe_of("more-ids"), workspace_of(home, "more"), silent)


def test_data_without_a_token_to_compare_is_refused(home: Path) -> None:
    recipe = recipe_of("planted")
    with pytest.raises(DataError, match="keeps no token"):
        make_look(replace(recipe, tokens=replace(recipe.tokens, skip_first=500)), workspace_of(home, "none"), silent)
    missing = replace(recipe, data=(replace(recipe.data[0], path="nowhere.jsonl"),))
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        make_look(missing, workspace_of(home, "none"), silent)


def test_a_look_ends_at_max_tokens_and_says_so(home: Path) -> None:
    recipe = recipe_of("planted", name="short", max_tokens=40, sweep_tokens=0, num_prompts=0)
    manifest = make_look(recipe, workspace_of(home, "short"), silent)
    assert 40 <= manifest.num_tokens < 120
    assert manifest.warnings == ("The data were compared up to max_tokens 40.",)


def test_layers_are_counted_down_from_the_last() -> None:
    assert swept_layers(26, None) == list(range(1, 26, 2))
    assert swept_layers(16, None) == list(range(16))
    assert swept_layers(10, 4) == [1, 5, 9]


def test_the_lowest_layer_that_carries_enough_is_recommended() -> None:
    shares = [LayerShares(i, chat, 0.02, base, 0.03) for i, (chat, base) in enumerate([(0.1, 0.05), (0.8, 0.6)])]
    assert recommend(shares, 3)[0] == 1
    assert "none reaches 70%" in recommend(shares, 3)[1]
    shares.append(LayerShares(2, 0.9, 0.01, 0.71, math.nan))
    layer, reason = recommend(shares, 3)
    assert layer == 2
    assert "90% ± 1%" in reason
    assert "71% of it" in reason
