"""Models that cannot be read are refused by class and reason before anything is trained; others go on."""

import copy
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertLMHeadModel, PreTrainedModel

from crosscope_proto.recipe import CrosscoderRecipe, parse_recipe
from crosscope_worker.analysis.errors import AnalysisError
from crosscope_worker.models.pair import decoder, decoder_layers
from crosscope_worker.models.places import PairError
from crosscope_worker.models.probes import (
    TOLERANCE,
    check_model,
    moved_by_tf32,
    probe_ids,
    rounding_error,
    standardised_error,
)
from crosscope_worker.models.residual import NotReached, layer_outputs, stream
from crosscope_worker.models.upper_half import UpperHalf
from crosscope_worker.recipes.train import make_crosscoder
from crosscope_worker.work import Workspace, silent
from tests.worker.tiny_models import KINDS, deep_gemma, products_of_few_tokens_split, tiny_model

REFUSED = {
    "Gemma3n": r"Gemma3nForCausalLM, has no single residual stream: layer 1 gives \[2, 1, 12, 16\]",
    "Mllama": r"MllamaForCausalLM, does not run layer 1 for texts .*; choose another layer",
    "Bert": "BertLMHeadModel, reads texts in both directions",
    "Roberta": "RobertaForCausalLM, reads texts in both directions",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_read_or_refused(kind: str) -> None:
    model = tiny_model(kind)
    if kind in REFUSED:
        with pytest.raises(PairError, match=f"the chat model, {REFUSED[kind]}"):
            check_model(model, 1, "the chat model")
    else:
        check_model(model, 1, "the chat model")
        UpperHalf(model, 1)


@pytest.mark.parametrize("layer", [0, 2])
def test_layers_that_read_texts_can_be_chosen_beside_those_for_images(layer: int) -> None:
    model = tiny_model("Mllama")
    check_model(model, layer, "the chat model")
    UpperHalf(model, layer)
    with pytest.raises(NotReached):
        layer_outputs(model, [1], probe_ids([model]))


def test_an_output_that_is_changed_on_its_way_is_refused() -> None:
    model = tiny_model("Llama")

    def double_the_states(_module: nn.Module, _given: object, output: Any) -> Any:
        return output | {"hidden_states": tuple(2 * state for state in output.hidden_states or ())}

    model.register_forward_hook(double_the_states)
    with pytest.raises(PairError, match="LlamaForCausalLM, does not hand the output of layer 1 on as it is"):
        check_model(model, 1, "the base model")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("give pixels"), "LlamaForCausalLM, cannot be run on token ids alone as a decoder: give pixels"),
        (torch.OutOfMemoryError("CUDA out of memory"), "^CUDA out of memory$"),
    ],
)
def test_what_a_model_raises_is_its_reason_but_for_memory(error: Exception, expected: str) -> None:
    model = tiny_model("Llama")

    def refuse(*_arguments: object) -> None:
        raise error

    decoder_layers(model)[0].register_forward_pre_hook(refuse)
    with pytest.raises((PairError, torch.OutOfMemoryError), match=expected):
        check_model(model, 1, "the base model")


def test_one_massive_dimension_hides_no_error() -> None:
    expected = torch.randn(12, 16, generator=torch.Generator().manual_seed(0))
    expected[:, 3] = 2000.0
    found = expected.clone()
    found[5, :3] += 0.5
    assert standardised_error(found, expected) > 0.1
    rounded = expected * (1 + 1e-7 * torch.randn(12, 16))
    assert standardised_error(rounded, expected) < 1e-4
    assert standardised_error(expected * torch.nan, expected) == float("inf")


RECIPE = """
kind: crosscoder
name: refused
pair: {name: tiny}
layer: 1
data: [{name: web, source: text, path: web.txt}]
crosscoder: {variant: batch_topk, num_latents: 8, k: 2}
"""


def job(folder: Path, spliced_tokens: int = 64) -> None:
    home = folder.parent.parent
    (home / "web.txt").write_text("the baker in the village makes fresh bread\n" * 40)
    recipe = parse_recipe(f"{RECIPE}analysis: {{spliced_tokens: {spliced_tokens}}}\n")
    assert isinstance(recipe, CrosscoderRecipe)
    (home / "job").mkdir()
    make_crosscoder(recipe, Workspace(home, home / "job", lambda: None), silent)


@pytest.fixture
def folder(tiny_pair_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_pair_folder, tmp_path / "pairs" / "tiny"))


def test_what_rounding_alone_comes_to_is_an_equal_computation_in_another_batch() -> None:
    model = deep_gemma()
    wide = copy.deepcopy(model).float()
    for rows in (1, 4):
        ids = probe_ids([model], rows)
        found: list[float] = []
        for each in (model, wide):
            with products_of_few_tokens_split(20), torch.inference_mode():

                def read(given: torch.Tensor, each: PreTrainedModel = each) -> torch.Tensor:
                    return stream(layer_outputs(each, [25], given)[0])

                found.append(rounding_error(read, ids, read(ids)))
        assert found[1] < TOLERANCE
        assert found[0] > 0.05 if rows == 1 else found[0] == 0, "four rows, and two: no product is split"


def test_a_job_with_a_model_that_cannot_be_read_trains_nothing(folder: Path) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 400, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    BertLMHeadModel(BertConfig(**sizes, num_hidden_layers=2, initializer_range=0.2)).save_pretrained(folder / "chat")
    with pytest.raises(PairError, match="pair 'tiny': the chat model, BertLMHeadModel, reads texts in both directions"):
        job(folder)
    assert not any((folder.parent.parent / "job").iterdir())


def test_a_job_whose_models_cannot_be_spliced_says_so_before_it_trains(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = UpperHalf.hidden
    monkeypatch.setattr(UpperHalf, "hidden", lambda self, ids, x: run(self, ids, x) + torch.randn(32))
    with pytest.raises(AnalysisError, match=re.escape("set analysis.spliced_tokens to 0")):
        job(folder)
    assert not any((folder.parent.parent / "job").iterdir())


def test_tf32_moves_a_model_whose_angles_are_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Late positions are rounded as TF32 rounds them: 10 bits hold even numbers only between 2 048 and 4 096."""
    model = tiny_model("Gemma2").to(torch.bfloat16)
    model.config.max_position_embeddings = 4096
    rotary = decoder(model).rotary_emb
    assert moved_by_tf32(model, 1) == 0

    def rounded(x: torch.Tensor, positions: torch.Tensor, **given: object) -> object:
        if torch.get_float32_matmul_precision() == "high":
            positions = positions // 2 * 2
        return type(rotary).forward(rotary, x, positions, **given)

    monkeypatch.setattr(rotary, "forward", rounded)
    assert moved_by_tf32(model, 1) > TOLERANCE
