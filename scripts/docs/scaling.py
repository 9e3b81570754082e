"""The tables of docs/scaling.md, worked out by the functions with which `crosscope plan` plans.

Run as a program it writes them into the page, each between `<!-- table: NAME -->` and `<!-- end -->`; a test says when
they are stale. Every rate is one of `crosscope_proto.rates`, a row of bench/results, or said to be a data sheet's.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from crosscope_proto import rates
from crosscope_proto.recipe import CrosscoderRecipe, parse_recipe
from crosscope_proto.training_memory import COPY, checkpoint_bytes, needed
from crosscope_server.jobs.estimate import token_flops
from crosscope_server.jobs.hub import KNOWN

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "scaling.md"
GEMMA = KNOWN["google/gemma-2-2b"]
H100 = rates.DEVICES[0]
NVLINK, NETWORK = 450e9, 50e9
"""Bytes a second each way: between the GPUs of one machine (NVLink 4), and between machines (400 Gbit/s a GPU)."""
GPUS_A_MACHINE = 8
BATCH, TOKENS = 2048, 10**9
DISK = 1.287e9
"""Bytes a second of a checkpoint to a local disk: row `checkpoint.written` of bench/results/2026-11-27-h100.jsonl."""
LAUNCHES_S = 0.0013
"""What of a step is no kernel's work, but 185 launches and two waits; it does not shrink with the share of the latents.
Row `step.batch_topk.bf16` of the same file: 13.642 ms, of which kernels take 12.306."""
FINISHED_LATENTS = 73_728
"""The largest dictionary whose analysis was measured to its end."""
EXAMPLES_A_LATENT, EXAMPLE_BYTES, ROW_BYTES = 86, 23.2, 528
"""Of the demo's L1 crosscoder, 27 November 2026: 1 536 latents have 131 623 examples of 3 055 958 bytes in Parquet, and
a table of 811 221 bytes."""
CALLS = {"GetLatent": 1.088, "ListLatents, a kept order": 7.595, "Encode, cached": 2.087, "Encode, new": 4.365}
"""Milliseconds of a call: rows of the bench `server` in bench/results/2026-11-25-two-cores-full.jsonl."""

Row = Sequence[str]


def original(latents: int = 73_728, batch: int = BATCH) -> CrosscoderRecipe:
    """The original run's recipe with another dictionary or batch."""
    recipe = parse_recipe((ROOT / "recipes" / "gemma-2-2b.yaml").read_text("utf-8"))
    assert isinstance(recipe, CrosscoderRecipe)
    return replace(
        recipe,
        crosscoder=replace(recipe.crosscoder, num_latents=latents),
        training=replace(recipe.training, batch_size=batch),
    )


FLOPS = token_flops(original(), {"base": GEMMA, "chat": GEMMA}) or 0.0
BOTH = 2 * 2304


def step_s(latents: float, devices: int, batch: int = BATCH) -> float:
    """Seconds that a device computes in a step with its share of the latents."""
    return max(LAUNCHES_S, H100.step_s("bfloat16", batch, round(latents / devices), BOTH))


def harvest_s(devices: int, batch: int = BATCH) -> float:
    """Seconds that both models take for a device's share of a batch."""
    return batch * H100.harvest_s(FLOPS) / devices


def sharded_bytes(devices: int, batch: int = BATCH) -> float:
    """Bytes that a device sends in a step: its tokens to all, and its part of the sum of reconstructions."""
    gathered = (devices - 1) / devices * 4 * batch * BOTH
    return gathered + 2 * gathered


def data_parallel_bytes(latents: int, devices: int) -> float:
    """The same where every device has all latents: gradients one way, weights the other, in float32."""
    return 2 * (devices - 1) / devices * 4 * 2 * latents * BOTH


def send_s(num_bytes: float, devices: int) -> float:
    """Seconds to send them, at what the slowest link on the way makes."""
    return num_bytes / (NVLINK if devices <= GPUS_A_MACHINE else NETWORK)


def memory(latents: int, devices: int) -> int:
    """Bytes of one device: its latents, the whole batch, its streams' buffer, and both models."""
    recipe = original(-(-latents // devices))
    buffer = max(2 * BATCH, recipe.training.buffer_tokens // devices)
    parts = needed(recipe.crosscoder, replace(recipe.training, buffer_tokens=buffer), (2304, 2304), "cuda")
    return sum(size for name, size in parts.items() if name != COPY) + 2 * GEMMA.size_bytes


def training() -> Iterator[Row]:
    """A row for each number of latents and devices."""
    yield (
        "latents",
        "devices",
        "models",
        "dictionary",
        "sent",
        "a step",
        "10⁹ tokens",
        "of the devices' time",
        "memory each",
    )
    for latents, counts in ((73_728, (1, 8, 64, 1000)), (1_000_000, (8, 64, 512, 1000))):
        for devices in counts:
            reading, step = harvest_s(devices), step_s(latents, devices)
            sent = send_s(sharded_bytes(devices), devices)
            whole = reading + step + sent
            yield (
                number(latents), number(devices), ms(reading), ms(step), ms(sent), ms(whole),
                hours(TOKENS / BATCH * whole), f"{(reading + step) / whole:.0%}", gb(memory(latents, devices)),
            )  # fmt: skip


def layouts() -> Iterator[Row]:
    """What a device sends in a step under both layouts."""
    yield "latents", "batch", "latents shared out", "a copy on each device", "ratio"
    for latents in (73_728, 1_000_000):
        for batch in (2048, 16_384, 131_072):
            ours, other = sharded_bytes(64, batch), data_parallel_bytes(latents, 64)
            yield number(latents), number(batch), gb(ours), gb(other), f"{other / ours:.3g}"


def checkpoints() -> Iterator[Row]:
    """Sizes of checkpoints, and how long they take."""
    yield "latents", "checkpoint", "on one disk", "shared by 8 machines", "version"
    for latents in (16_384, 73_728, 262_144, 1_000_000):
        recipe = original(latents)
        size = checkpoint_bytes(recipe.crosscoder, recipe.training, (2304, 2304))
        version = 4 * (2 * latents * BOTH + latents + BOTH)
        yield number(latents), gb(size), seconds(size / DISK), seconds(size / DISK / 8), gb(version)


def analyses() -> Iterator[Row]:
    """How long an analysis takes, whole and in parts."""
    yield "latents", "held-out tokens", "one device: tokens", "its end", "8 parts", "64 parts"
    for latents in (FINISHED_LATENTS, 262_144, 1_000_000):
        for tokens in (5_000_000, 50_000_000):
            whole = H100.analysis_seconds(tokens, FLOPS, latents, BOTH)
            end = latents * (H100.analysis_latent_s or 0.0)
            pass_s = whole - end
            beyond = "" if latents <= FINISHED_LATENTS else " (beyond what was measured)"
            parts = (hours(pass_s / count + end) for count in (8, 64))
            yield number(latents), number(tokens), hours(pass_s), seconds(end) + beyond, *parts


def stores() -> Iterator[Row]:
    """What a version takes on disk and in the server's memory, besides its weights."""
    yield "latents", "examples", "their files", "latents' table", "in the server's memory"
    for latents in (1536, 73_728, 1_000_000):
        examples = latents * EXAMPLES_A_LATENT
        yield (
            number(latents),
            number(examples),
            gb(examples * EXAMPLE_BYTES),
            gb(latents * ROW_BYTES),
            gb(8 * 93 * latents),
        )


def callers() -> Iterator[Row]:
    """Calls a second of one server process on one core, one at a time."""
    yield "call", "milliseconds", "a second"
    for name, milliseconds in CALLS.items():
        yield name, f"{milliseconds:.3g}", number(round(1000 / milliseconds))


def measured() -> Iterator[Row]:
    """The rates on which everything else rests."""
    yield "what", "rate", "source"
    rows = (
        ("both models to layer 13, a token", f"{1 / H100.harvest_s(FLOPS):,.0f} a second".replace(",", " ")),
        ("a step, 73 728 latents, batch 2 048, bfloat16", ms(step_s(73_728, 1))),
        ("analysis of a held-out token, 73 728 latents", f"{1e6 * H100.analysis_s * 73_728 * BOTH:.3g} µs"),
    )
    for name, rate in rows:
        yield name, rate, f"`rates.py`, row {H100.name}: {H100.source}"
    yield (
        "a checkpoint to disk",
        f"{DISK / 1e9:.3g} GB/s",
        "`bench/results/2026-11-27-h100.jsonl`, `checkpoint.written`",
    )
    yield (
        "between GPUs, between machines",
        f"{NVLINK / 1e9:.0f} and {NETWORK / 1e9:.0f} GB/s",
        "data sheets (NVLink 4; 400 Gbit/s for each GPU), not measured",
    )


def number(value: int) -> str:
    """With spaces between thousands; powers of ten above a million as such."""
    if value >= 10**6 and str(value).rstrip("0") == "1":
        return "10" + "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(digit)] for digit in str(len(str(value)) - 1))
    return f"{value:,}".replace(",", " ")


def gb(num_bytes: float) -> str:
    """Decimal units."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes / 1e3:.3g} kB"


def ms(value_s: float) -> str:
    """Milliseconds."""
    return f"{1e3 * value_s:.3g} ms"


def seconds(value: float) -> str:
    """Seconds."""
    return f"{value:.3g} s"


def hours(value_s: float) -> str:
    """Minutes below two hours, days from two days on."""
    if value_s < 7200:
        return f"{value_s / 60:.3g} min"
    return f"{value_s / 3600:.3g} h" if value_s < 48 * 3600 else f"{value_s / 86400:.3g} days"


TABLES: Mapping[str, Callable[[], Iterator[Row]]] = {
    "measured": measured,
    "training": training,
    "layouts": layouts,
    "checkpoints": checkpoints,
    "analyses": analyses,
    "stores": stores,
    "callers": callers,
}
_PLACE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def markdown(rows: Iterator[Row]) -> str:
    """A table; its first row are the heads."""
    head, *others = rows
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *others))


def filled(page: str) -> str:
    """The page with its tables as they are now. Raises KeyError for a table that does not exist."""
    return _PLACE.sub(lambda found: found[1] + "\n" + markdown(TABLES[found[2]]()) + "\n" + found[3], page)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text("utf-8")), "utf-8")
