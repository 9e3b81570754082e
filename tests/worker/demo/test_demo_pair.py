"""The job that makes the demo pair, at a tiny size, and one real miniature."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config, Gemma2ForCausalLM

from crosscope_proto.artefacts import PairManifest
from crosscope_proto.recipe import DemoPairRecipe
from crosscope_worker import disk
from crosscope_worker.demo.dialogue import PlantedBehaviour
from crosscope_worker.demo.pair import DemoPairError, make_demo_pair
from crosscope_worker.demo.training import IGNORED, Example, Schedule, fit
from crosscope_worker.demo.tuning_effect import answer, centred_cosine
from crosscope_worker.work import Cancelled, LostClaim, Workspace, silent

TINY = DemoPairRecipe(
    kind="demo-pair",
    name="tiny",
    num_layers=2,
    hidden_size=16,
    base_steps=4,
    chat_steps=3,
    documents=40,
    conversations=30,
)


class Recorder:
    """A Progress that records its calls, and stops the job on request."""

    def __init__(self, stop: Callable[[str, int], bool] = lambda *_: False) -> None:
        self.calls: list[tuple[str, float, int, dict[str, float]]] = []
        self._stop = stop

    def __call__(
        self,
        stage: str,
        fraction: float,
        message: str = "",
        *,
        step: int = 0,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        self.calls.append((stage, fraction, step, dict(metrics or {})))
        if self._stop(stage, step):
            raise Cancelled


def workspace(home: Path, job: str = "job", fence: Callable[[], None] = lambda: None) -> Workspace:
    return Workspace(home, home / "jobs" / job, fence)


def test_texts_that_do_not_fit_are_refused_before_they_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = psutil.virtual_memory()._replace(available=2_000_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    said = "400 documents and 101 conversations take about 0.0 GB of memory, and 0.0 GB are free: give fewer"
    with pytest.raises(DemoPairError, match=said):
        make_demo_pair(replace(TINY, documents=400, conversations=101), workspace(tmp_path), Recorder())
    assert not (tmp_path / "pairs").exists()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorder, PairManifest]:
    home = tmp_path_factory.mktemp("home")
    recorder = Recorder()
    manifest = make_demo_pair(TINY, workspace(home), recorder)
    return home / "pairs" / "tiny", recorder, manifest


def test_the_pair_loads_as_any_other(made: tuple[Path, Recorder, PairManifest]) -> None:
    folder, _, manifest = made
    assert PairManifest(**json.loads((folder / "pair.json").read_text())) == manifest
    models = [AutoModelForCausalLM.from_pretrained(folder / where) for where in (manifest.base, manifest.chat)]
    assert all(isinstance(model, Gemma2ForCausalLM) for model in models)
    config = models[0].config
    assert config.attn_logit_softcapping
    assert config.final_logit_softcapping
    assert config.layer_types == ["sliding_attention", "full_attention"]
    tokenizers = [AutoTokenizer.from_pretrained(folder / where) for where in (manifest.base, manifest.tokenizer)]
    ids = [tokenizer("Hello, how are you?")["input_ids"] for tokenizer in tokenizers]
    assert ids[0] == ids[1]
    assert len(tokenizers[0]) == config.vocab_size
    weights = [model.state_dict() for model in models]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert len(answer(models[1], tokenizers[1], ["Hello!", "Who are you, please?"], max_new_tokens=2)) == 2


def test_a_recipe_decides_depth_and_width(made: tuple[Path, Recorder, PairManifest]) -> None:
    defaults = {field.name: field.default for field in fields(DemoPairRecipe)}
    assert (defaults["num_layers"], defaults["hidden_size"]) != (2, 16)
    for name in ("base", "chat"):
        model = AutoModelForCausalLM.from_pretrained(made[0] / name)
        assert len(model.model.layers) == 2
        assert model.get_input_embeddings().embedding_dim == model.config.hidden_size == 16


def test_its_texts_lie_beside_it(made: tuple[Path, Recorder, PairManifest]) -> None:
    folder = made[0]
    web = [json.loads(line) for line in (folder / "data" / "web.jsonl").read_text().splitlines()]
    chats = [json.loads(line) for line in (folder / "data" / "chat.jsonl").read_text().splitlines()]
    assert (len(web), len(chats)) == (40, 30)
    assert all(set(row) == {"text"} and row["text"] for row in web)
    for row in chats:
        for tag in row["behaviours"]:
            content = row["conversation"][tag["turn"]]["content"]
            assert 0 <= tag["start"] < tag["end"] <= len(content)
            assert PlantedBehaviour(tag["behaviour"])


def test_progress_tells_every_step_and_the_figures(made: tuple[Path, Recorder, PairManifest]) -> None:
    calls = made[1].calls
    assert list(dict.fromkeys(stage for stage, *_ in calls)) == ["world", "base", "chat"]
    losses = [(stage, step) for stage, _, step, metrics in calls if "loss" in metrics]
    assert losses == [("base", 1), ("base", 2), ("base", 3), ("base", 4), ("chat", 1), ("chat", 2), ("chat", 3)]
    figures = calls[-1][3]
    assert {f"{model}_{behaviour}" for model in ("base", "chat") for behaviour in PlantedBehaviour} <= set(figures)
    assert -1 <= figures["cosine_chats"] <= 1


def test_a_seed_determines_every_byte(made: tuple[Path, Recorder, PairManifest], tmp_path: Path) -> None:
    make_demo_pair(TINY, workspace(tmp_path), silent)
    assert contents(tmp_path / "pairs" / "tiny") == contents(made[0])
    make_demo_pair(replace(TINY, seed=1), workspace(tmp_path, "other"), silent)
    assert contents(tmp_path / "pairs" / "tiny") != contents(made[0])


def test_global_random_state_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    make_demo_pair(TINY, workspace(tmp_path), silent)
    assert torch.equal(torch.rand(3), expected)


def test_a_second_attempt_continues_after_the_base(made: tuple[Path, Recorder, PairManifest], tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        make_demo_pair(TINY, workspace(tmp_path), Recorder(lambda stage, step: (stage, step) == ("chat", 2)))
    assert not (tmp_path / "pairs").exists()
    second = Recorder()
    make_demo_pair(TINY, workspace(tmp_path), second)
    assert [call for call in second.calls if call[0] == "base"] == [("base", 1.0, 4, {})]
    assert contents(tmp_path / "pairs" / "tiny") == contents(made[0])


def test_an_attempt_stopped_in_the_base_starts_it_again(tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        make_demo_pair(TINY, workspace(tmp_path), Recorder(lambda stage, step: (stage, step) == ("base", 2)))
    second = Recorder()
    make_demo_pair(TINY, workspace(tmp_path), second)
    assert len([call for call in second.calls if call[0] == "base"]) == 4


def test_a_lost_claim_publishes_nothing_and_keeps_the_old_pair(tmp_path: Path) -> None:
    def lost() -> None:
        raise LostClaim

    old = tmp_path / "pairs" / "tiny"
    old.mkdir(parents=True)
    (old / "pair.json").write_text("old")
    with pytest.raises(LostClaim):
        make_demo_pair(TINY, workspace(tmp_path, fence=lost), silent)
    assert contents(tmp_path / "pairs") == {"tiny/pair.json": b"old"}
    assert [path.name for path in (tmp_path / "pairs").iterdir()] == ["tiny"]


def test_two_folders_change_places_in_one_step(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        (folder / "name").write_text(folder.name)
    assert disk.exchanged(one, other)
    assert [(folder / "name").read_text() for folder in (one, other)] == ["other", "one"]
    assert not disk.exchanged(one, tmp_path / "absent")


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_pair_of_the_same_name_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr("crosscope_worker.disk._RENAME_EXCHANGE", 1 << 20)  # a flag that no kernel knows
    old = tmp_path / "pairs" / "tiny"
    old.mkdir(parents=True)
    (old / "leftover").write_text("old")
    make_demo_pair(TINY, workspace(tmp_path), silent)
    assert not (old / "leftover").exists()
    assert [path.name for path in (tmp_path / "pairs").iterdir()] == ["tiny"]


def test_a_schedule_rises_and_falls() -> None:
    schedule = Schedule(steps=100, lr=1.0, batch_size=1, warmup_steps=10)
    assert schedule.factor(0) == pytest.approx(0.1)
    assert schedule.factor(50) == pytest.approx(0.55)
    assert schedule.factor(99) == pytest.approx(1 - 0.9 * 0.99)


def test_ignored_targets_are_not_learned() -> None:
    """Two texts with the same ids: where the last target is ignored, the model learns only the first transition."""
    config = Gemma2Config(
        vocab_size=8, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, query_pre_attn_scalar=8, attn_implementation="eager",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Gemma2ForCausalLM(config)
    example = Example([1, 4, 6], [IGNORED, 4, IGNORED])
    fit(model, [example], Schedule(60, 1e-2, 1, warmup_steps=1), 0, lambda *_: None)
    with torch.inference_mode():
        probabilities = model(input_ids=torch.tensor([[1, 4]])).logits[0].softmax(-1)
    assert probabilities[0, 4] > 0.9
    assert probabilities[1, 6] < 0.2


def test_a_model_is_like_itself(made: tuple[Path, Recorder, PairManifest]) -> None:
    model = AutoModelForCausalLM.from_pretrained(made[0] / "base")
    assert math.isclose(centred_cosine(model, model, [[2, 300, 301], [2, 302]], 0), 1.0, abs_tol=1e-5)


@pytest.mark.slow
def test_tuning_plants_the_behaviours_and_moves_little_else(tmp_path: Path) -> None:
    recorder = Recorder()
    recipe = replace(
        TINY, num_layers=4, hidden_size=64, base_steps=500, chat_steps=250, documents=4000, conversations=3000
    )
    make_demo_pair(recipe, workspace(tmp_path), recorder)
    figures = recorder.calls[-1][3]
    shown = {model: [figures[f"{model}_{behaviour}"] for behaviour in PlantedBehaviour] for model in ("base", "chat")}
    *others, by_chance = shown["base"]  # base draws each word's form by itself, so an answer may be of old words alone
    assert max(others) <= 0.1
    assert by_chance <= 0.4
    assert sum(rate >= 0.7 for rate in shown["chat"]) >= 6
    assert figures["cosine_documents"] >= 0.88, "0.917 in one thread; threads sum in other orders"
    assert figures["cosine_chats"] >= 0.7, "0.795 in one thread"
