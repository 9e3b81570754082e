"""Codes of prompts as the inference process makes them: both models up to the layer, and the crosscoder.

Each figure is a median over new prompts of random tokens. `plain` runs the same shapes without graphs and fused norms,
`unfused` as graphs without fused norms. The rows below `online.same` compare them, one by one with together, which is
what rounding in bfloat16 comes to, and TF32 with IEEE float32.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import numpy as np
import torch

from bench.gpu.material import gemma_pair, gemma_tokenizer
from bench.gpu.profiles import kernels, waits
from bench.gpu.rows import Run, main
from crosscope_proto.roles import CHAT, TokenRole
from crosscope_proto.specs import TokenPolicy
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.dictionary.keep import AboveThreshold
from crosscope_worker.effects.attribute import Question, attribute
from crosscope_worker.effects.compare import compare
from crosscope_worker.effects.decoding import Decoder
from crosscope_worker.effects.interventions import Action, Intervention
from crosscope_worker.effects.orders import ArmOrder, Order, Token
from crosscope_worker.effects.sampling import SamplingSettings
from crosscope_worker.effects.subject import Reading, Subject
from crosscope_worker.models.activations import PairActivations
from crosscope_worker.models.fixed_shapes import Recorder, Shape
from crosscope_worker.models.fixed_shapes import Run as Recorded
from crosscope_worker.models.graphs import Graphs
from crosscope_worker.precision import float32_on
from crosscope_worker.serve.encoding import Encoder, PromptCode
from crosscope_worker.tokenizer.tokens import TextTokenizer

CACHE_BYTES = 4 << 30
NEW_TOKENS = 24


def plain(activations: PairActivations, _shape: Shape) -> Recorded:
    """A run that is not recorded."""
    return Recorded(activations.rows, 0)


class Online:
    """A subject in the original run's shape, and encoders of it."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.tokenizer = gemma_tokenizer()
        self.draw = np.random.default_rng(0)
        pair = gemma_pair(run, self.tokenizer)
        self.vocab_size: int = pair.models[0].config.vocab_size
        activations = PairActivations(pair, run.sizes.layer)
        x = activations.rows(torch.from_numpy(np.stack(self.prompts(8)))).flatten(0, 1)
        reading = Reading(
            run.sizes.layer,
            self.crosscoder(x),
            torch.ones(run.sizes.num_latents),
            TokenPolicy(max_norm_ratio=None),
            float32=float32_on(run.device, None),
        )
        self.subject = Subject(pair, reading)
        self.recorder: Recorder = plain if run.dry else Graphs(run.device)
        self.graphs = Encoder(self.subject, torch.get_num_threads(), self.recorder)
        unfused: Recorder = plain if run.dry else Graphs(run.device, fuse=False)
        self.unfused = Encoder(self.subject, torch.get_num_threads(), unfused)
        self.plain = Encoder(self.subject, torch.get_num_threads(), plain)

    @torch.inference_mode()
    def crosscoder(self, x: torch.Tensor) -> Crosscoder:
        """Random rows; a threshold that keeps about k latents on a token of `x`."""
        sizes, device = self.run.sizes, self.run.device
        draw = torch.Generator(device).manual_seed(0)
        halves = [torch.randn(sizes.num_latents, sizes.d_model, generator=draw, device=device) for _ in range(2)]
        rows = torch.cat([torch.nn.functional.normalize(half, dim=1) for half in halves], dim=1)
        zeros = torch.zeros(sizes.num_latents, device=device), torch.zeros(2 * sizes.d_model, device=device)
        widths = sizes.d_model, sizes.d_model
        made = Crosscoder(rows.clone().T, zeros[0], rows, zeros[1], widths, "batch_topk")
        strongest = torch.topk(made.scaled(x).flatten(), len(x) * sizes.k, sorted=False)
        return replace(made, keep=AboveThreshold(float(strongest.values.min())))

    def prompts(self, count: int, length: int = 64) -> list[np.ndarray]:
        """New prompts: <bos> and random tokens."""
        return [np.append(2, self.draw.integers(6, self.vocab_size, length - 1)) for _ in range(count)]

    def latency(self, row: str, encoder: Encoder, count: int, length: int, rounds: int) -> None:
        """A row: milliseconds of new prompts of one length."""
        rounds = 3 if self.run.dry else rounds
        first_s, _ = self.run.wall(lambda: encoder(self.prompts(count, length)))
        encoder(self.prompts(count, length))
        took: list[float] = []
        active = 0
        for _ in range(rounds):
            given = self.prompts(count, length)
            started = time.perf_counter()
            codes = encoder(given)
            took.append(1000 * (time.perf_counter() - started))
            active += sum(len(code.latents) for code in codes)
        num_tokens = count * length
        self.run.row(
            row,
            median(took),
            "ms",
            p95_ms=float(np.percentile(took, 95)),
            tok_s=1000 * num_tokens / median(took),
            active=active / num_tokens / rounds,
            rounds=rounds,
            first_ms=1000 * first_s,
            recorded_mib=encoder.size_bytes / 2**20,
        )

    def shares(self) -> None:
        """Rows: what models and code take of a prompt of 64 tokens, and its launches and waits."""
        ids = self.prompts(1)
        recorded = self.recorder(self.subject.activations, Shape(1, 64))
        given = torch.from_numpy(np.stack(ids))
        models = self.run.timed(lambda: recorded.repeat(given), rounds=3 if self.run.dry else 30)
        self.run.row("online.1x64.models", models.median, "ms", **models.detail())
        whole = self.run.timed(lambda: self.graphs(ids), rounds=3 if self.run.dry else 30)
        self.run.row("online.1x64.code", whole.median - models.median, "ms", whole_ms=whole.median)
        for name, encoder in (("graph", self.graphs), ("unfused", self.unfused), ("plain", self.plain)):
            found = kernels(self.run, lambda encoder=encoder: encoder(ids))
            if found is not None:
                detail = {"kernels_ms": found.ms, "busy": found.busy, "largest": found.largest}
                self.run.row(f"online.1x64.kernels.{name}", found.launches, "kernels", **detail)
        told = waits(self.run, lambda: self.graphs(ids))
        if told is not None:
            self.run.row("online.1x64.waits", sum(told.values()), "waits", places=dict(told))

    def memory(self) -> None:
        """A row: what recorded runs take, by what torch holds of the device, and how long recording takes.

        The driver counts all processes, so its count would be of other sections too.
        """
        run, activations = self.run, self.subject.activations
        run.free()  # What is cached would be taken for what the runs hold.
        before = 0 if run.dry else torch.cuda.memory_reserved()
        shapes = [Shape(1, pos) for pos in (16, 32, 64, 128, 256, 512)] + [Shape(8, 64), Shape(32, 64)]
        recorder = plain if run.dry else Graphs(run.device)
        took, runs = run.wall(lambda: [recorder(activations, shape) for shape in shapes])
        run.free()
        held = 0 if run.dry else torch.cuda.memory_reserved() - before
        counted = sum(each.size_bytes for each in runs)
        needs = "a CPU records no graphs"
        run.row("online.graphs", held / 2**30, "GiB", needs, counted_gib=counted / 2**30, runs=len(runs), s=took)

    def same(self) -> None:
        """Rows: entries that two ways have in common. Graphs without fused norms must give a plain run's, every bit."""
        prompts = [self.prompts(1, length)[0] for length in (5, 64, 40, 200, 64, 90, 33)]
        ours, plainly = self.graphs(prompts), self.plain(prompts)
        self._overlap("online.same.graph_unfused_against_plain", self.unfused(prompts), plainly)
        self._overlap("online.same.graph_against_plain", ours, plainly)
        alone = [self.plain([ids])[0] for ids in prompts]
        self._overlap("online.same.together_against_alone", plainly, alone)
        assert self.subject.reading is not None
        ieee = Subject(self.subject.pair, replace(self.subject.reading, float32="ieee"))
        self._overlap("online.same.tf32_against_ieee", plainly, Encoder(ieee, 1, plain)(prompts))

    def _overlap(self, row: str, found: list[PromptCode], expected: list[PromptCode]) -> None:
        """A row: the share of entries that both have, and how much their activations differ."""
        one, other = entries(found), entries(expected)
        common = one.keys() & other.keys()
        apart = [abs(one[entry] - other[entry]) / other[entry] for entry in common]
        share = len(common) / max(1, len(one.keys() | other.keys()))
        self.run.row(row, share, "share in common", entries=len(one), largest_relative_difference=max(apart, default=0))

    def compare(self) -> None:
        """A row: milliseconds in which both models' predictions of a prompt of 64 tokens are compared."""
        self._asked("online.compare.1x64", lambda ids: compare(self.subject, [ids], 10), rounds=10)

    def attribute(self) -> None:
        """A row: milliseconds of an attribution with 32 exact effects, on a prompt of 64 tokens."""
        roles = np.full(64, TokenRole.TEXT, np.uint8)
        self._asked("online.attribute.1x64", lambda ids: attribute(self.subject, ids, roles, Question()), rounds=3)

    def _asked(self, row: str, ask: Callable[[np.ndarray], object], rounds: int) -> None:
        """A row: milliseconds of a question about new prompts."""
        first_s, _ = self.run.wall(lambda: ask(self.prompts(1)[0]))
        rounds = 1 if self.run.dry else rounds
        took = [1000 * self.run.wall(lambda: ask(self.prompts(1)[0]))[0] for _ in range(rounds)]
        detail = {"lowest_ms": min(took), "highest_ms": max(took), "rounds": rounds, "first_ms": 1000 * first_s}
        self.run.row(row, median(took), "ms", **detail)

    def generate(self, row: str, callers: int, interventions: tuple[Intervention, ...] = ()) -> None:
        """A row: tokens a second of continuations, plain or changed."""
        decoder, tokenizer = Decoder(self.subject, CACHE_BYTES, 2048), TextTokenizer(self.tokenizer)
        new_tokens = 4 if self.run.dry else NEW_TOKENS
        arm = ArmOrder(CHAT, interventions, SamplingSettings(max_new_tokens=new_tokens))

        def answer() -> int:
            for ids in self.prompts(callers):
                decoder.admit(Order(ids, np.full(len(ids), TokenRole.TEXT, np.uint8), (arm,), tokenizer))
            count = 0
            while not decoder.is_idle:
                count += sum(isinstance(event, Token) for event in decoder.step())
            return count

        first_s, _ = self.run.wall(answer)
        took, count = self.run.wall(answer)
        self.run.row(row, count / took, "tok/s", step_ms=1000 * took * callers / count, first_s=first_s)


def entries(codes: list[PromptCode]) -> dict[tuple[int, int, int], float]:
    """Scaled activations by prompt, token and latent."""
    found: dict[tuple[int, int, int], float] = {}
    for prompt, code in enumerate(codes):
        tokens = np.repeat(np.arange(len(code.row_starts) - 1), np.diff(code.row_starts))
        columns = tokens.tolist(), code.latents.tolist(), code.activations.tolist()
        found |= {(prompt, token, latent): value for token, latent, value in zip(*columns, strict=True)}
    return found


def rows(run: Run) -> None:
    """Measures and compares; see the module."""
    if run.dry:
        torch.set_num_threads(1)
    online = run.part("online", lambda: Online(run), limit_s=30, use="beside")
    if online is None:
        return
    few, many, long = (4, 8, 100) if run.dry else (32, 128, 512)
    run.part("online.1x64", lambda: online.latency("online.1x64", online.graphs, 1, 64, 60))
    ablated = (Intervention(tuple(range(16)), Action.ABLATE),)
    for row, callers, changes in (
        ("online.generate.1", 1, ()),
        (f"online.generate.{few}", few, ()),
        (f"online.generate.{few}.ablated", few, ablated),
    ):
        run.part(row, lambda row=row, callers=callers, changes=changes: online.generate(row, callers, changes))
    run.part("online.compare.1x64", online.compare)
    run.part("online.attribute.1x64", online.attribute)
    run.part("online.1x64.unfused", lambda: online.latency("online.1x64.unfused", online.unfused, 1, 64, 20))
    run.part("online.1x64.plain", lambda: online.latency("online.1x64.plain", online.plain, 1, 64, 20))
    run.part("online.32x64", lambda: online.latency("online.32x64", online.graphs, few, 64, 20))
    run.part("online.32x64.plain", lambda: online.latency("online.32x64.plain", online.plain, few, 64, 10))
    run.part("online.32x64.unfused", lambda: online.latency("online.32x64.unfused", online.unfused, few, 64, 10))
    run.part("online.128x64", lambda: online.latency("online.128x64", online.graphs, many, 64, 12))
    run.part("online.1x512", lambda: online.latency("online.1x512", online.graphs, 1, long, 20))
    run.part("online.1x64.shares", online.shares)
    run.part("online.same", online.same, use="beside")
    run.part("online.graphs", online.memory)


if __name__ == "__main__":
    sys.exit(main("online", rows))
