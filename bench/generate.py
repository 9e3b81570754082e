"""Prompts continued: the decoder against transformers' own `generate`, many callers against one, changed arms against
plain ones, and prompts that are encoded beside callers.

Both models are random Gemma 2 of the demo pair's shape, and the crosscoder has the demo's size. All answers have the
same number of tokens. Needs no server.
"""

import asyncio
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from bench.material import AnalysisSizes, crosscoder, tokenizer
from bench.rows import Figure, Row, Target
from bench.timing import Ratio, interleave
from crosscope_proto.artefacts import PairManifest
from crosscope_proto.roles import BASE, CHAT, TokenRole
from crosscope_proto.specs import TokenPolicy
from crosscope_worker.effects.decoding import Decoder
from crosscope_worker.effects.interventions import Action, Intervention
from crosscope_worker.effects.orders import ArmOrder, Order, SamplingSettings, Token
from crosscope_worker.effects.subject import Reading, Subject
from crosscope_worker.models.pair import Pair
from crosscope_worker.serve.batching import Batcher
from crosscope_worker.serve.encoding import Encoder
from crosscope_worker.serve.generation import Generations
from crosscope_worker.tokenizer.tokens import TextTokenizer

CACHE_BYTES = 1 << 30
UNREAD_BYTES = 1 << 28
ADD = (Intervention((1, 2, 3), Action.ADD, 1.0),)
ABLATE = (Intervention((1, 2, 3), Action.ABLATE),)


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measurement."""

    hidden_size: int = 64
    num_layers: int = 4
    layer: int = 2
    vocab_size: int = 1762
    num_latents: int = 1536
    prompt_tokens: int = 32
    new_tokens: int = 64
    encoded_tokens: int = 64
    encodes: int = 200
    callers: tuple[int, ...] = (8, 32)
    rounds: int = 7


QUICK = Sizes(32, 2, 0, 100, 64, prompt_tokens=8, new_tokens=6, encodes=4, callers=(2,), rounds=2)


def rows(quick: bool) -> Iterator[Row]:
    """A row for one caller, each number of callers, each kind of change, and encoding beside callers."""
    sizes = QUICK if quick else Sizes()
    bench = _Bench(sizes)
    with torch.inference_mode():
        bench.check()
    works: dict[str, Callable[[], object]] = {"generate": bench.generate, "one": lambda: bench.decode(1)}
    works |= {str(number): lambda number=number: bench.decode(number) for number in sizes.callers}
    few = sizes.callers[0]
    works |= {f"{name} {number}": lambda change=change, number=number: bench.decode(number, change)
              for name, change in (("add", ADD), ("ablate", ABLATE)) for number in (1, few)}  # fmt: skip
    seconds = interleave(works, sizes.rounds)
    one = [took / sizes.new_tokens for took in seconds["one"]]
    described = {"hidden_size": sizes.hidden_size, "num_layers": sizes.num_layers, "new_tokens": sizes.new_tokens}

    def row(case: str, ours: list[float], reference: list[float], what: str, bound: float) -> Row:
        """Seconds a token of both, as tokens per second."""
        targets = () if quick else (Target("ratio", "at_least", bound),)
        figures = [1 / statistics.median(each) for each in (ours, reference)]
        return Row("generate", case, described, Figure(figures[0], "tokens/s"),
                   Figure(figures[1], "tokens/s", what), Ratio.of(reference, ours), targets=targets)  # fmt: skip

    plain = [took / sizes.new_tokens for took in seconds["generate"]]
    yield row("one caller", one, plain, "transformers' greedy generate", 1.0)
    for number, bound in zip(sizes.callers, (4.0, 8.0), strict=False):
        many = [took / sizes.new_tokens / number for took in seconds[str(number)]]
        yield row(f"{number} callers", many, one, "one caller", bound)
    for name in ("add", "ablate"):
        for number, reference in ((1, "one"), (few, str(few))):
            ours, unchanged = ([1000 * took / sizes.new_tokens for took in seconds[key]]
                               for key in (f"{name} {number}", reference))  # fmt: skip
            yield Row(
                "generate",
                f"{name}, {number} caller{'s' * (number > 1)}",
                described,
                Figure(statistics.median(ours), "ms a step"),
                Figure(statistics.median(unchanged), "ms a step", "the same without a change"),
                Ratio.of(ours, unchanged),
                "times as much",
                targets=() if quick or name != "add" else (Target("ratio", "at_most", 1.1),),
            )
    yield asyncio.run(bench.encoding(few, 1000 * statistics.median(seconds[str(few)]) / sizes.new_tokens, quick))


class _Bench:
    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        models = [_model(sizes, seed) for seed in (0, 1)]
        words = tokenizer(sizes.vocab_size)
        manifest = PairManifest("random", "base", "chat", "chat")
        self.pair = Pair(manifest, (models[BASE], models[CHAT]), words, torch.device("cpu"))
        dictionary = crosscoder(AnalysisSizes(d_model=sizes.hidden_size, num_latents=sizes.num_latents, k=16))
        maxima = torch.ones(sizes.num_latents)
        self.subject = Subject(self.pair, Reading(sizes.layer, dictionary, maxima, TokenPolicy(max_norm_ratio=None)))
        self.tokenizer = TextTokenizer(words)
        self.decoder = Decoder(self.subject, CACHE_BYTES, 256)
        self.num_threads = torch.get_num_threads()

    def order(self, number: int, change: tuple[Intervention, ...] = ()) -> Order:
        """One caller's order, with a prompt of its own."""
        ids = self.ids(number, self.sizes.prompt_tokens)
        arm = ArmOrder(CHAT, change, SamplingSettings(max_new_tokens=self.sizes.new_tokens))
        return Order(ids, np.full(len(ids), TokenRole.TEXT, np.uint8), (arm,), self.tokenizer)

    def ids(self, number: int, length: int) -> np.ndarray:
        """A prompt."""
        return np.random.default_rng(number).integers(4, self.sizes.vocab_size, length)

    def decode(self, callers: int, change: tuple[Intervention, ...] = ()) -> list[Token]:
        """The answers to so many callers who come at once."""
        for number in range(callers):
            self.decoder.admit(self.order(number, change))
        tokens: list[Token] = []
        while not self.decoder.is_idle:
            torch.set_num_threads(self.decoder.num_threads(self.num_threads))
            tokens += [event for event in self.decoder.step() if isinstance(event, Token)]
        assert len(tokens) == callers * self.sizes.new_tokens
        return tokens

    def generate(self) -> list[int]:
        """The first caller's answer by transformers."""
        ids = torch.from_numpy(self.order(0).ids)[None]
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": self.sizes.new_tokens}
        found = self.pair.models[CHAT].generate(**given, do_sample=False)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
        return found[0, ids.shape[1] :].tolist()

    def check(self) -> None:
        """Both sides must answer with the same tokens."""
        assert [token.id for token in self.decode(1)] == self.generate()

    async def encoding(self, callers: int, step_ms: float, quick: bool) -> Row:
        """The slowest of a hundred prompts that are encoded beside callers, against two steps and its own time."""
        sizes = self.sizes
        device = ThreadPoolExecutor(1)
        encoder = Encoder(self.subject, self.num_threads)

        def encode(_key: str, prompts: Sequence[np.ndarray]) -> Sequence[object]:
            return encoder(prompts)

        batcher = Batcher(encode, device, 8192, 65536)
        generations = Generations(device, CACHE_BYTES, 256, callers, UNREAD_BYTES)
        stop = asyncio.Event()

        async def ask(number: int) -> None:
            while not stop.is_set():
                async for _ in generations.generate("random", self.subject, self.order(number)):
                    pass

        async def timed(number: int) -> float:
            started = time.perf_counter()
            await batcher.submit("random", self.ids(number, sizes.encoded_tokens), sizes.encoded_tokens)
            return 1000 * (time.perf_counter() - started)

        alone = [await timed(number) for number in range(sizes.encodes)]
        asking = [asyncio.create_task(ask(number)) for number in range(callers)]
        await asyncio.sleep(0.05)
        beside: list[float] = []
        for number in range(sizes.encodes):
            beside.append(await timed(number))
            await asyncio.sleep(0.002)
        stop.set()
        await asyncio.gather(*asking)
        device.shutdown()
        quantiles = [np.quantile(each, 0.99) for each in np.array_split(np.array(beside), 4)]
        allowed = 2 * step_ms + float(np.quantile(alone, 0.99))
        return Row(
            "generate",
            f"encode, p99 beside {callers} callers",
            {
                "encoded_tokens": sizes.encoded_tokens,
                "step_ms": step_ms,
                "alone_p99_ms": float(np.quantile(alone, 0.99)),
            },
            Figure(float(np.median(quantiles)), "ms"),
            Figure(allowed, "ms", "two decode steps and its own p99"),
            Ratio.of([float(each) for each in quantiles], [allowed] * len(quantiles)),
            "times as much",
            targets=() if quick else (Target("ratio", "at_most", 1.0),),
        )


def _model(sizes: Sizes, seed: int) -> Gemma2ForCausalLM:
    heads = max(2, sizes.hidden_size // 16)
    torch.manual_seed(seed)
    config = Gemma2Config(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.hidden_size,
        intermediate_size=4 * sizes.hidden_size,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=64,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="eager",  # pyright: ignore[reportCallIssue]
    )
    return Gemma2ForCausalLM(config).eval().requires_grad_(False)
