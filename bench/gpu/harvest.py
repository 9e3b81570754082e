"""A section of `make bench-gpu`: activations of both models up to the layer, as jobs make them and otherwise."""

import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Gemma2Model, PreTrainedModel

from bench.gpu import material, profiles
from bench.gpu.rows import Run, main
from crosscope_proto.specs import TokenPolicy
from crosscope_worker.data.harvest import TOKENS_PER_FORWARD, harvest
from crosscope_worker.data.texts import Text
from crosscope_worker.models.activations import PairActivations
from crosscope_worker.models.packed_rows import graphs_compiled
from crosscope_worker.models.pair import Pair

KEEP_ALL = TokenPolicy(skip_bos=False)
LONGEST = 1024


class Harvests:
    """The pair, and texts of mixed and of equal lengths."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.pair = material.gemma_pair(run, material.gemma_tokenizer(1000), long_rows=not run.dry)
        self.activations = PairActivations(self.pair, run.sizes.layer)
        vocabulary = self.pair.num_readable
        self.length = 128 if run.dry else TOKENS_PER_FORWARD
        num_tokens, longest = (400, 60) if run.dry else (260_000, LONGEST)
        self.mixed = material.texts(material.lengths(num_tokens, high=longest), vocabulary)
        self.equal = material.texts([longest] * (num_tokens // longest), vocabulary)

    def ready(self) -> None:
        """What trying and compiling takes, and what they have found."""
        before = graphs_compiled()
        seconds, packs = self.run.wall(lambda: self.activations.packs_rows(self.length))
        graphs = graphs_compiled() - before
        said = self.activations.about_rows(self.length)
        self.run.row("harvest.ready", seconds, "s", packs_rows=packs, graphs=graphs, said=said)

    def rate(self, name: str, texts: Sequence[Text], activations: PairActivations, reps: int = 2) -> None:
        """Tokens a second of a harvest; the best of `reps`, after one window."""
        _read(activations, texts[: max(1, len(texts) // 8)], self.length)
        held, before = self.run.start_peak(), graphs_compiled()
        took = [self.run.wall(partial(_read, activations, texts, self.length)) for _ in range(reps)]
        num_tokens = sum(len(text.ids) for text in texts)
        rates = [found / seconds for seconds, found in took]
        assert all(found == num_tokens for _, found in took)
        graphs, peak = graphs_compiled() - before, self.run.peak_gib(held)
        self.run.row(name, max(rates), "tok/s", each=rates, tokens=num_tokens, new_graphs=graphs, peak_gib=peak)

    def profile(self) -> None:
        """The kernels of one window, and how busy the device is."""
        some = self.mixed[: len(self.mixed) // 3]
        found = profiles.kernels(self.run, lambda: _read(self.activations, some, self.length), calls=1, top=14)
        if found is not None:
            num_tokens = sum(len(text.ids) for text in some)
            self.run.row(
                "harvest.busy", found.busy, "share", kernels_ms=found.ms, launches=found.launches, tokens=num_tokens,
                largest=found.largest,
            )  # fmt: skip

    def waits(self) -> None:
        """How often a window waits for the device, and where."""
        some = self.mixed[: len(self.mixed) // 3]
        found = profiles.waits(self.run, lambda: _read(self.activations, some, self.length))
        if found is not None:
            self.run.row("harvest.waits", found.total(), "waits", where=dict(found.most_common(12)))

    def tiles(self) -> None:
        """The kernel of attention alone, by tile: a row of the texts' mixed lengths."""
        if self.run.device.type != "cuda":
            return
        from crosscope_worker.models.packed_attention_triton import TILES, Tile

        positions = _positions([len(text.ids) for text in self.mixed], self.length).to(self.run.device)
        draw = partial(torch.randn, device=self.run.device, dtype=torch.bfloat16)
        q, k, v = (draw(1, self.length, heads, 256).transpose(1, 2) for heads in (8, 4, 4))
        chosen = [Tile(128, 64, 8, 2), Tile(128, 32, 8, 2), Tile(128, 32, 8, 3), Tile(64, 64, 4, 2), Tile(64, 32, 4, 3)]
        seen = float((positions + 1).sum())
        for tile in chosen:
            name = f"harvest.attention.{'x'.join(map(str, tile))}"
            self.run.part(name, partial(self._tile, name, tile, (q, k, v, positions), seen, tile == TILES[0]), 3)

    def _tile(self, name: str, tile: tuple[int, ...], given: tuple[Tensor, ...], seen: float, is_chosen: bool) -> None:
        from crosscope_worker.models.packed_attention_triton import Tile, attention

        work = partial(attention, *given, 256**-0.5, 50.0, 4096, Tile(*tile))
        timing = self.run.timed(work, rounds=20)
        tflops = 4 * 8 * 256 * seen / timing.median / 1e9
        self.run.row(name, timing.median, "ms", tflops=tflops, is_chosen=is_chosen, **timing.detail())

    def own_attention(self) -> None:
        """The same harvest in short rows, with the models' own attention."""
        plain = Pair(self.pair.manifest, self.pair.models, self.pair.tokenizer, self.pair.device)
        self.rate("harvest.mixed.own_attention", self.mixed, PairActivations(plain, self.run.sizes.layer), 1)

    def bare(self) -> None:
        """A bare forward to the layer with torch's own attention, layers compiled, without soft-capping."""
        if self.run.device.type != "cuda":
            return
        models = [_lower(self.run, model) for model in self.pair.models]
        ids = torch.from_numpy(np.concatenate([text.ids for text in self.equal])).to(self.run.device)
        rows = ids[: ids.numel() // LONGEST // 8 * 8 * LONGEST].view(-1, 8, LONGEST)
        rows = rows[:16]
        with _with_sdpa([*models, *self.pair.models]):
            seconds, _ = self.run.wall(lambda: _bare(models, rows[:1]))
            took, _ = self.run.wall(lambda: _bare(models, rows))
        self.run.row("harvest.bare.compiled", rows.numel() / took, "tok/s", compile_s=seconds)

    def longer(self) -> None:
        """Rows of twice the length: whether larger products are worth it."""
        twice = PairActivations(self.pair, self.run.sizes.layer)
        self.length *= 2
        seconds, _ = self.run.wall(lambda: twice.packs_rows(self.length))
        self.rate(f"harvest.mixed.{self.length}", self.mixed, twice)
        self.run.row(f"harvest.ready.{self.length}", seconds, "s")


def _read(activations: PairActivations, texts: Sequence[Text], length: int) -> int:
    return sum(len(found.x) for found in harvest(texts, activations, KEEP_ALL, length))


def _positions(lengths: Sequence[int], length: int) -> Tensor:
    """[1, length]: texts one after the other; the last is cut."""
    return torch.cat([torch.arange(each) for each in lengths])[None, :length].contiguous()


def _lower(run: Run, model: nn.Module) -> Gemma2Model:
    """A model that ends at the layer, with the same weights and compiled layers."""
    num_layers = run.sizes.layer + 1
    config = material.gemma_config(run, num_layers)
    with torch.device("meta"):
        lower = Gemma2Model(config)
    whole = model.get_submodule("model")
    for name in ("embed_tokens", "norm", "rotary_emb"):
        lower.set_submodule(name, whole.get_submodule(name))
    lower.layers = nn.ModuleList(list(whole.get_submodule("layers").children())[:num_layers])
    for layer in lower.layers:
        layer.forward = partial(torch.compile(type(layer).forward, dynamic=False), layer)
    return lower.eval()


@torch.inference_mode()
def _bare(models: Sequence[Gemma2Model], rows: Tensor) -> None:
    for ids in rows:
        torch.cat([model(input_ids=ids, use_cache=False).last_hidden_state for model in models], dim=-1)


@contextmanager
def _with_sdpa(models: Sequence[PreTrainedModel]) -> Generator[None]:
    """Lets models take torch's own attention, which transformers may refuse for their soft-capping."""
    configs: list[Any] = [model.config for model in models]
    before = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name


def rows(run: Run) -> None:
    """The section's rows, the most wanted first."""
    made = run.part("harvest", lambda: Harvests(run), 30, "beside")
    if made is None:
        return
    run.part("harvest.ready", made.ready, 25, "beside")
    run.part("harvest.mixed", lambda: made.rate("harvest.mixed", made.mixed, made.activations, 2), 12)
    run.part("harvest.equal", lambda: made.rate("harvest.equal", made.equal, made.activations, 1), 8)
    run.part("harvest.busy", made.profile, 8)
    run.part("harvest.waits", made.waits, 4)
    made.tiles()
    run.part("harvest.mixed.own_attention", made.own_attention, 12)
    run.part("harvest.mixed.longer", made.longer, 25)
    run.part("harvest.bare.compiled", made.bare, 25)


if __name__ == "__main__":
    sys.exit(main("harvest", rows))
