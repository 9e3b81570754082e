"""Our crosscoders in others' layouts: the hub folder and back, the dashboard's SQLite file; and an analysis."""

import dataclasses
import json
import resource
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from fixtures_artefacts import write_crosscoder
from layouts import LATENTS, WIDTH, hub_tensors, planted, write_hub
from safetensors.torch import load_file

from crosscope_proto import artefacts as layout
from crosscope_proto.artefacts import CrosscoderManifest, PairManifest
from crosscope_proto.roles import TokenRole
from crosscope_proto.specs import AnalysisSpec
from crosscope_worker.analysis import HeldOut, analyse
from crosscope_worker.data.harvest import Harvest
from crosscope_worker.data.texts import Text
from crosscope_worker.dictionary.crosscoder import Crosscoder, CrosscoderError
from crosscope_worker.dictionary.keep import (
    ALL_POSITIVE,
    AboveModelThresholds,
    AboveThreshold,
    AboveThresholds,
    LargestOfToken,
    StoredKeep,
)
from crosscope_worker.dictionary.load import load_crosscoder
from crosscope_worker.dictionary.published.__main__ import main
from crosscope_worker.dictionary.published.dashboard import export_dashboard
from crosscope_worker.dictionary.published.export import export_hub, export_version
from crosscope_worker.dictionary.streams import STREAMS
from crosscope_worker.tokenizer.tokens import TextTokenizer
from crosscope_worker.work import silent

READS = {"diff_sae": "difference", "base_sae": "base", "chat_sae": "chat"}


def make_crosscoder(**options) -> Crosscoder:
    torch.manual_seed(0)
    random = {
        "W_enc": torch.randn(LATENTS, 2 * WIDTH).T,
        "b_enc": torch.randn(LATENTS),
        "W_dec": torch.randn(LATENTS, 2 * WIDTH),
        "b_dec": torch.randn(2 * WIDTH),
    }
    return Crosscoder(
        **random | {"d_model": (WIDTH, WIDTH), "variant": "batch_topk", "keep": AboveThreshold(2.5)} | options
    )


def decoupled(thresholds: torch.Tensor) -> Crosscoder:
    return make_crosscoder(code_normalisation="decoupled", keep=AboveModelThresholds(thresholds))


def one_stream(variant: str, normalised: bool) -> Crosscoder:
    """A dictionary of the difference or of one model, with rows of different norms."""
    first = variant == "base_sae"
    generator = torch.Generator().manual_seed(3)
    reads, writes = (torch.randn(LATENTS, WIDTH, generator=generator) for _ in range(2))
    nothing, b_dec = torch.zeros(LATENTS, WIDTH), torch.randn(WIDTH, generator=generator)
    base = {"diff_sae": -reads, "base_sae": reads, "chat_sae": nothing}[variant]
    mean = torch.randn(WIDTH, generator=generator)

    def halves(part: torch.Tensor) -> torch.Tensor:
        return torch.cat([part, torch.zeros_like(part)] if first else [torch.zeros_like(part), part], dim=-1)

    scale = {"diff_sae": (0.25, 0.25), "base_sae": (0.25, 1.0), "chat_sae": (1.0, 0.25)}[variant]
    options = {"input_scale": scale, "input_mean": halves(mean)} if normalised else {}
    return make_crosscoder(
        W_enc=torch.cat([base, nothing if first else reads], dim=1).T,
        W_dec=halves(writes),
        b_dec=halves(b_dec),
        variant=variant,
        streams=STREAMS[READS[variant]],
        keep=AboveThreshold(1.5),
        **options,
    )


def difference(**options) -> Crosscoder:
    return dataclasses.replace(one_stream("diff_sae", normalised=False), **options)


def make_manifest(crosscoder: Crosscoder, recipe: dict[str, object]) -> CrosscoderManifest:
    return CrosscoderManifest(
        name="toy",
        version_id="v1",
        pair=PairManifest(name="pair", base="/base", chat="/chat", tokenizer="/chat"),
        layer=1,
        d_model=crosscoder.d_model,
        num_latents=LATENTS,
        variant=crosscoder.variant,
        code_normalisation=crosscoder.code_normalisation,
        threshold=StoredKeep.of(crosscoder.keep, LATENTS).threshold,
        reads=crosscoder.streams.name,
        input_scale=crosscoder.input_scale,
        recipe=recipe,
    )


def assert_same(found: Crosscoder, expected: Crosscoder) -> None:
    for field in dataclasses.fields(Crosscoder):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(b, AboveModelThresholds):
            a, b = a.thresholds, b.thresholds
        assert torch.equal(a, b) if isinstance(b, torch.Tensor) else a == b, field.name


@pytest.mark.parametrize(
    "crosscoder",
    [
        make_crosscoder(),
        make_crosscoder(variant="l1", keep=ALL_POSITIVE, code_normalisation="sae"),
        make_crosscoder(code_normalisation="mixed", input_scale=(0.25, 0.5), input_mean=torch.randn(2 * WIDTH)),
        decoupled(torch.tensor([[1.5], [3.0]]).repeat(1, LATENTS)),
    ],
    ids=["plain", "l1", "normalised", "decoupled"],
)
def test_to_the_hub_layout_and_back(tmp_path: Path, crosscoder: Crosscoder):
    export_hub(crosscoder, tmp_path / "hub", k=7)
    assert_same(load_crosscoder(tmp_path / "hub"), crosscoder)
    stored = load_file(tmp_path / "hub" / "model.safetensors")
    assert stored["encoder.weight"].shape == (2, WIDTH, LATENTS)
    assert ("k" in stored) == (crosscoder.variant == "batch_topk")
    if "activation_std" in stored:
        scale = stored["target_rms"] / (stored["activation_std"].square().sum(dim=1) + 1e-8).sqrt()
        torch.testing.assert_close(scale, torch.tensor([0.25, 0.5]))


def test_the_dialect_of_one_scale(tmp_path: Path):
    crosscoder = make_crosscoder(input_scale=(0.25, 0.25), input_mean=torch.randn(2 * WIDTH))
    export_hub(crosscoder, tmp_path / "hub", k=7, dialect="one-scale")
    stored = load_file(tmp_path / "hub" / "model.safetensors")
    assert stored["activation_global_scale"].shape == ()
    assert "dict_class" not in json.loads((tmp_path / "hub" / "config.json").read_text())
    assert_same(load_crosscoder(tmp_path / "hub"), crosscoder)


@pytest.mark.parametrize("dialect", ["two-scales", "one-scale"])
def test_a_decoupled_code_of_normalised_inputs_is_written_as_the_forks_apply_it(tmp_path: Path, dialect: str):
    scales = (0.25, 0.5) if dialect == "two-scales" else (0.25, 0.25)
    thresholds = torch.tensor([[0.5], [0.7]]).repeat(1, LATENTS)
    mean = torch.randn(2 * WIDTH)
    crosscoder = dataclasses.replace(decoupled(thresholds), input_scale=scales, input_mean=mean)
    export_hub(crosscoder, tmp_path / "hub", k=7, dialect=dialect)
    stored = {name: each.double().numpy() for name, each in load_file(tmp_path / "hub" / "model.safetensors").items()}
    x = torch.randn(40, 2, WIDTH)
    y, scale = x.double().numpy(), np.array(scales)[:, None]
    for _ in range(2):
        y = (y - stored["activation_mean"]) * scale
    post = np.maximum(np.einsum("bmd,mdf->bf", y, stored["encoder.weight"]) + stored["encoder.bias"], 0)
    kept = post[:, None] * np.linalg.norm(stored["decoder.weight"], axis=2) > stored["threshold"][:, None]
    code = crosscoder.encode(x)
    np.testing.assert_allclose(code.numpy(), post * kept.any(axis=1), rtol=1e-4, atol=1e-5)
    assert 0.1 < float((code > 0).float().mean()) < 0.9
    back = load_crosscoder(tmp_path / "hub")
    torch.testing.assert_close(back.encode(x), code, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(back.decode(back.encode(x)), crosscoder.decode(code), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("dialect", ["two-scales", "one-scale"])
@pytest.mark.parametrize("variant", ["diff_sae", "base_sae", "chat_sae"])
def test_a_dictionary_of_one_stream_there_and_back(tmp_path: Path, variant: str, dialect: str, normalised: bool):
    crosscoder = one_stream(variant, normalised)
    sentences = export_hub(crosscoder, tmp_path / "hub", k=7, dialect=dialect)
    reads = READS[variant]
    assert reads in sentences[1]
    back = load_crosscoder(tmp_path / "hub", reads=reads)
    assert back.variant == variant
    x = torch.randn(50, 2 * WIDTH)
    scaled = crosscoder.scaled(x)
    torch.testing.assert_close(back.scaled(x), scaled, rtol=1e-4, atol=1e-5)
    assert torch.equal(back.scaled(x) > 0, scaled > 0)
    torch.testing.assert_close(
        back.decode(back.encode(x)), crosscoder.decode(crosscoder.encode(x)), rtol=1e-4, atol=1e-5
    )
    stored = load_file(tmp_path / "hub" / "model.safetensors")
    assert {"encoder.weight", "encoder.bias", "decoder.weight", "b_dec", "k", "threshold"} <= stored.keys()
    torch.testing.assert_close(stored["decoder.weight"].norm(dim=0), torch.ones(LATENTS))
    assert 0.05 < float((scaled > 0).float().mean()) < 0.95


def test_a_difference_version_is_exported_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    crosscoder = one_stream("diff_sae", normalised=False)
    (tmp_path / "v1").mkdir()
    crosscoder.save(tmp_path / "v1", make_manifest(crosscoder, {"crosscoder": {"k": 7}}))
    paths = str(tmp_path / "v1"), str(tmp_path / "hub")
    monkeypatch.setattr(sys, "argv", ["published", "hub", *paths, "--dialect", "one-scale"])
    assert main() == 0
    assert "a dictionary of the difference, chat less base; say so beside it." in capsys.readouterr().err
    x = torch.randn(9, 2 * WIDTH)
    back = load_crosscoder(tmp_path / "hub", reads="difference")
    torch.testing.assert_close(back.scaled(x), crosscoder.scaled(x), rtol=1e-4, atol=1e-5)


def test_a_crosscoder_that_does_not_fit_the_hub_layout_is_refused(tmp_path: Path):
    with pytest.raises(CrosscoderError, match="stores k beside a threshold"):
        export_hub(make_crosscoder(), tmp_path / "hub")
    with pytest.raises(CrosscoderError, match="this crosscoder has one for every latent"):
        export_hub(decoupled(torch.rand(2, LATENTS)), tmp_path / "hub", k=7)
    with pytest.raises(CrosscoderError, match="this crosscoder has 5 and 7"):
        export_hub(make_crosscoder(d_model=(5, 7)), tmp_path / "hub", k=7)
    assert not (tmp_path / "hub").exists()
    with pytest.raises(CrosscoderError, match="exists; name a new folder"):
        export_hub(make_crosscoder(), tmp_path, k=7)


def test_a_version_folder_is_exported_by_the_command(tmp_path: Path):
    crosscoder = make_crosscoder(input_mean=torch.randn(2 * WIDTH))
    (tmp_path / "v1").mkdir()
    crosscoder.save(tmp_path / "v1", make_manifest(crosscoder, {"crosscoder": {"k": 7}}))
    assert_same(load_crosscoder(tmp_path / "v1"), crosscoder)
    command = [
        sys.executable,
        "-m",
        "crosscope_worker.dictionary.published",
        "hub",
        str(tmp_path / "v1"),
        str(tmp_path / "hub"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr == "The folder says nothing of the pair, the layer, the recipe and the analysis.\n"
    assert_same(load_crosscoder(tmp_path / "hub"), crosscoder)
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 1
    assert again.stderr.endswith("exists; name a new folder\n")
    crosscoder.save(tmp_path / "v1", make_manifest(crosscoder, {}))
    with pytest.raises(CrosscoderError, match="pass k"):
        export_version(tmp_path / "v1", tmp_path / "other")


def test_examples_for_the_dashboard(tmp_path: Path):
    manifest = write_crosscoder(tmp_path, "demo", 64)
    version = Path(layout.version_folder(tmp_path, "demo", manifest.version_id))
    target = tmp_path / "examples.db"
    count = export_dashboard(version, target)
    with sqlite3.connect(target) as connection:
        rows = dict(connection.execute("SELECT key, examples FROM data_table").fetchall())
    connection.close()
    pieces = pq.read_table(version / layout.SEQUENCES)["pieces"].to_pylist()
    table = [row for part in (version / layout.EXAMPLES).iterdir() for row in pq.read_table(part).to_pylist()]
    top = [row for row in table if row["group"] == "top"]
    assert count == len(rows) == len({row["latent"] for row in top})
    for latent, text in rows.items():
        examples = json.loads(text)
        mine = sorted((row for row in top if row["latent"] == latent), key=lambda row: -row["max"])
        assert [example[0] for example in examples] == [row["max"] for row in mine]
        strongest, row = examples[0], mine[0]
        assert strongest[1] == pieces[row["sequence"]]
        assert len(strongest[2]) == len(strongest[1])
        assert {i: v for i, v in enumerate(strongest[2]) if v} == dict(
            zip(row["positions"], row["values"], strict=True)
        )
    with pytest.raises(CrosscoderError, match="exists; name a new file"):
        export_dashboard(version, target)
    with pytest.raises(CrosscoderError, match="is it a version folder"):
        export_dashboard(tmp_path, tmp_path / "other.db")
    assert sorted(path.name for path in tmp_path.glob("*.db*")) == ["examples.db"]
    assert not list(tmp_path.glob(".*"))


def test_a_dashboard_that_cannot_be_written_is_an_error(tmp_path: Path):
    manifest = write_crosscoder(tmp_path, "demo", 64)
    version = Path(layout.version_folder(tmp_path, "demo", manifest.version_id))
    with pytest.raises(CrosscoderError, match=r"missing/examples.db cannot be written: .*No such file"):
        export_dashboard(version, tmp_path / "missing" / "examples.db")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))  # as a disk that is full after a page
    try:
        with pytest.raises(CrosscoderError, match=r"examples.db cannot be written: "):
            export_dashboard(version, tmp_path / "examples.db")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.glob("*.db")) + list(tmp_path.glob(".*"))


def test_a_loaded_crosscoder_is_analysed(tmp_path: Path, tiny_pair):
    p = planted(thresholds=np.full(2, 3.0))
    tensors = hub_tensors(p) | {"k": torch.tensor(4), "threshold": torch.tensor(3.0)}
    mean, std = torch.randn(2, WIDTH), torch.full((2, WIDTH), WIDTH**-0.5)
    crosscoder = load_crosscoder(write_hub(tmp_path, tensors | {"activation_mean": mean, "activation_std": std}))
    x = torch.randn(40, 2 * WIDTH)
    roles = np.full(10, TokenRole.USER, np.uint8)
    harvest = Harvest(
        texts=[Text(0, np.arange(10), roles) for _ in range(4)],
        x=x,
        text=torch.arange(4).repeat_interleave(10),
        position=torch.arange(10).repeat(4),
        role=torch.full((40,), int(TokenRole.USER)),
        dataset=torch.zeros(40, dtype=torch.uint8),
    )
    spec = AnalysisSpec(max_tokens=1000, num_shards=2)
    tokenizer = TextTokenizer(tiny_pair.tokenizer)
    analysis = analyse(crosscoder, HeldOut([harvest], ("documents",), tokenizer), spec, silent)
    scaled = crosscoder.scaled(x)
    assert analysis.latents["num_active"].to_pylist() == (scaled > 0).sum(dim=0).tolist()
    torch.testing.assert_close(torch.tensor(analysis.latents["max"].to_pylist()), scaled.amax(dim=0))
    error = (x - crosscoder.decode(crosscoder.encode(x))).double()[:, :WIDTH]
    centred = x.double()[:, :WIDTH] - x.double()[:, :WIDTH].mean(dim=0)
    fve = 1 - error.square().sum() / centred.square().sum()
    assert analysis.metrics["fve_base"] == pytest.approx(float(fve), rel=1e-4)


def test_rules_and_scales_that_the_layout_cannot_hold_are_refused(tmp_path: Path):
    budgets = make_crosscoder(keep=AboveThresholds(torch.arange(float(LATENTS))))
    with pytest.raises(CrosscoderError, match="one threshold; this crosscoder has a threshold for every latent"):
        export_hub(budgets, tmp_path / "out", k=5)
    with pytest.raises(CrosscoderError, match="keeps what lies above one threshold; this crosscoder keeps k of each"):
        export_hub(make_crosscoder(keep=LargestOfToken(3)), tmp_path / "out", k=5)
    with pytest.raises(CrosscoderError, match="written with a threshold; this one has none"):
        export_hub(difference(keep=ALL_POSITIVE), tmp_path / "out", k=5)
    with pytest.raises(CrosscoderError, match="unknown dialect 'latin'; known are two-scales, one-scale"):
        export_hub(make_crosscoder(), tmp_path / "out", k=5, dialect="latin")
    with pytest.raises(CrosscoderError, match=r"one input scale for both models, not 0\.25 and 0\.5"):
        export_hub(make_crosscoder(input_scale=(0.25, 0.5)), tmp_path / "out", k=5, dialect="one-scale")
    assert not (tmp_path / "out").exists()
