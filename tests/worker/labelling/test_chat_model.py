"""The pair's own chat model as explainer: with a random model labels are garbage, and the scores say so."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures_labelled import WORDS, write_planted

from crosscope_proto.artefacts import MANIFEST, PairManifest, version_folder
from crosscope_proto.label_specs import LabelBudget
from crosscope_proto.recipe import LabelRecipe, parse_recipe
from crosscope_worker.labelling.asking import Answers, Asker
from crosscope_worker.labelling.chat_model import ChatExplainer
from crosscope_worker.labelling.examples import Window
from crosscope_worker.models.pair import load_pair
from crosscope_worker.recipes.label import make_labels
from crosscope_worker.roots import RootError
from crosscope_worker.tokenizer.tokens import TextTokenizer
from crosscope_worker.work import Workspace, silent

RECIPE = """
kind: label
name: planted
explainer: {by: chat}
latents: {ids: [0, 1]}
examples: {shown: 2, held_out: 6}
"""


@pytest.fixture(scope="module")
def long_pair(tmp_path_factory: pytest.TempPathFactory, tiny_pair_folder: Path) -> PairManifest:
    """The tiny pair, with more positions than its prompts have."""
    folder = tmp_path_factory.mktemp("pair")
    for model in ("base", "chat"):
        (folder / model).mkdir()
        for path in (tiny_pair_folder / model).iterdir():
            (folder / model / path.name).write_bytes(path.read_bytes())
        config = json.loads((folder / model / "config.json").read_text())
        (folder / model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}))
    return PairManifest("tiny", str(folder / "base"), str(folder / "chat"), str(folder / "chat"))


@pytest.fixture
def answers(tmp_path: Path) -> Iterator[Answers]:
    found = Answers(tmp_path / "answers.jsonl")
    yield found
    found.close()


def planted(home: Path, pair: PairManifest) -> None:
    """The planted crosscoder, as if it were of this pair."""
    manifest = write_planted(home)
    path = Path(version_folder(home, manifest.name, manifest.version_id)) / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pair": vars(pair)}))


def test_garbage_scores_like_a_coin(tmp_path: Path, long_pair: PairManifest, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("crosscope_worker.recipes.label_chat.ANSWER_TOKENS", 24)
    planted(tmp_path, long_pair)
    (folder := tmp_path / "jobs" / "job-1").mkdir(parents=True)
    recipe = parse_recipe(RECIPE)
    assert isinstance(recipe, LabelRecipe)
    home = Workspace(tmp_path, folder, lambda: None)
    with pytest.raises(RootError):
        make_labels(recipe, home, silent)
    home = Workspace(tmp_path, folder, lambda: None, data_roots=(Path(long_pair.base).parent,))
    made = make_labels(recipe, home, silent)
    assert made.author == "chat model of tiny"
    assert made.labels
    assert len(made.labels) + len(made.unlabelled.get("the answer could not be read", ())) == 2
    for each in made.labels:
        assert each.text not in WORDS
        for measure, count in (("detection", 10), ("fuzzing", 6)):
            assert each.scores[f"{measure}_n"] == count
            assert abs(each.scores[measure] - 0.5) <= 3 * each.scores[f"{measure}_se"]
    assert made.notes[0].startswith(f"{2 + 16 * len(made.labels)} requests")
    answers = (folder / "checkpoints" / "answers.jsonl").read_bytes()
    assert make_labels(recipe, home, silent).labels == made.labels
    assert (folder / "checkpoints" / "answers.jsonl").read_bytes() == answers, "nothing is asked twice"


def test_it_says_what_the_model_finds_more_probable(answers: Answers, long_pair: PairManifest):
    pair = load_pair(long_pair)
    tokenizer = TextTokenizer(pair.tokenizer)
    asker = Asker(answers, LabelBudget(), "chat")
    explainer = ChatExplainer(asker, pair, tokenizer, answer_tokens=5)
    messages = [
        {
            "role": "user",
            "content": 'Description: "foxes"\n\nText, as a JSON string: "the red fox"\n\nDoes the description fit '
            "something in the text? Answer with Yes or No.",
        }
    ]
    ids = pair.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    with torch.inference_mode():
        logits = pair.models[1](input_ids=torch.tensor([ids])).logits[0, -1]
    yes, no = (pair.tokenizer.encode(word, add_special_tokens=False)[0] for word in ("Yes", "No"))
    assert explainer.judge("detection", "foxes", ["the red fox"]) == [bool(logits[yes] > logits[no])]
    assert asker.spent.prompt_tokens == len(ids)


def test_a_prompt_that_is_too_long_is_shortened(answers: Answers, long_pair: PairManifest):
    pair = load_pair(long_pair)
    asker = Asker(answers, LabelBudget(), "chat")
    explainer = ChatExplainer(asker, pair, TextTokenizer(pair.tokenizer), answer_tokens=5)
    rng = np.random.default_rng(0)
    long = [Window(tuple(f" {n}" for n in rng.integers(0, 10**6, 60)), frozenset({3}), frozenset({3}), 1.0)] * 6
    assert explainer.label(long)
    assert explainer.notes() == ["Texts that were not shown, because the model cannot read so much: 3."]
    assert pair.max_positions is not None
    assert pair.max_positions - 800 < asker.spent.prompt_tokens <= pair.max_positions - 5
