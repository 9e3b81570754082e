"""Prompts on a running system, `make demo` for instance, as the Python client sees them.

Each prompt is new and has 64 tokens or a few more. The reference of a new prompt is the computing time that the worker
reports. The reference of the same prompt again, which the cache answers, is the first answer.
"""

import random
import statistics
import time
from collections.abc import Iterator
from itertools import chain

from bench.rows import Figure, Row
from bench.timing import Ratio
from crosscope import Client, CrosscopeError

CROSSCODER = "demo"
NUM_TOKENS = 64
WARMUP = 10


def rows(quick: bool) -> Iterator[Row]:
    """A row for new prompts and one for cached ones, or one that gives the reason why there are none."""
    rounds, calls = (2, 2) if quick else (5, 40)
    try:
        with Client() as client:
            texts = prompts(client, WARMUP + rounds * calls)
            for text in texts[:WARMUP]:
                client.crosscoder(CROSSCODER).encode(text)
            warm, computed, cached = measure(client, texts[WARMUP:], calls)
    except CrosscopeError as error:
        yield Row("prompts", "on a running system", {"num_tokens": NUM_TOKENS}, not_measured=str(error))
        return
    for case, ours, reference, what in (
        ("encode, new", warm, computed, "what the worker computed"),
        ("encode, cached", cached, warm, "the same prompt when new"),
    ):
        everything = list(chain(*ours))
        medians, others = ([statistics.median(each) for each in took] for took in (ours, reference))
        yield Row(
            name="prompts",
            case=case,
            sizes={
                "num_tokens": NUM_TOKENS,
                "calls": len(everything),
                "p95_ms": statistics.quantiles(everything, n=20, method="inclusive")[-1],
            },
            ours=Figure(statistics.median(medians), "ms"),
            reference=Figure(statistics.median(others), "ms", what),
            ratio=Ratio.of(medians, others),
            ratio_is="times as much",
        )


def prompts(client: Client, count: int) -> list[str]:
    """Different prompts of NUM_TOKENS tokens or a few more, of words at which latents peak."""
    found = client.crosscoder(CROSSCODER)
    pieces = {piece.strip() for latent in found.latents(limit=50) for piece in latent.top_tokens}
    words = sorted(piece for piece in pieces if piece.isalpha())
    draw = random.Random()  # new prompts each time: none may be in the cache
    made: list[str] = []
    for _ in range(count):
        text = " ".join(draw.choices(words, k=NUM_TOKENS // 2))
        while len(found.tokenize(text)) < NUM_TOKENS:
            text += f" {draw.choice(words)}"
        made.append(text)
    return made


def measure(client: Client, texts: list[str], calls: int) -> tuple[list[list[float]], ...]:
    """Milliseconds of new prompts, of the worker's part in them, and of the same prompts again; `calls` per round."""
    crosscoder = client.crosscoder(CROSSCODER)
    warm: list[float] = []
    computed: list[float] = []
    cached: list[float] = []
    for text in texts:
        started = time.perf_counter()
        code = crosscoder.encode(text)
        warm.append((time.perf_counter() - started) * 1000)
        assert not code.cached, "a new prompt was in the cache"
        computed.append(code.compute_ms)
        started = time.perf_counter()
        assert crosscoder.encode(text).cached, "the cache did not keep a prompt"
        cached.append((time.perf_counter() - started) * 1000)
    return tuple(
        [took[first : first + calls] for first in range(0, len(took), calls)] for took in (warm, computed, cached)
    )
