"""The report: the runs, a JSON line for each, and a table of means over seeds.

Does not know how a figure is computed.
"""

import json
import math
import multiprocessing
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from bench.truth.planted import PlantedSpec
from bench.truth.run import Sizes, Variant, run

_DFC = {"variant": "dfc", "k": 8, "num_base_only": 40, "num_chat_only": 40}
_DELTA = {"variant": "delta", "k": 6, "k_delta": 2, "delta_weight": 1.0}
_DESIGNATED = {"variant": "designated_shared", "mu": 0.1, "shared_penalty": 0.2}
VARIANTS = (
    Variant("batch_topk", {"variant": "batch_topk", "k": 8}),
    Variant("l1-0.05", {"variant": "l1", "mu": 0.05}),
    Variant("l1-0.1", {"variant": "l1", "mu": 0.1}),
    Variant("l1-0.15", {"variant": "l1", "mu": 0.15}),
    Variant("designated", _DESIGNATED, {"num_shared": 1 / 8}),
    Variant("dfc", _DFC),
    Variant("delta", _DELTA, {"num_delta": 1 / 4}),
    Variant("diff_sae", {"variant": "diff_sae", "k": 4}),
    Variant("topk", {"variant": "topk", "k": 8}),
    Variant("jumprelu", {"variant": "jumprelu", "mu": 0.03, "initial_threshold": 0.5, "bandwidth": 0.5}),
    Variant("matryoshka", {"variant": "matryoshka", "k": 8}),
)


_ABOUT = ("name", "variant", "seed", "sizes", "planted", "commit", "hardware")
"""Keys of a line that are not figures."""


@dataclass(frozen=True)
class Result:
    """The figures of one variant and seed."""

    variant: str
    seed: int
    figures: dict[str, float]


def report(
    variants: Sequence[Variant],
    seeds: Sequence[int],
    sizes: Sizes,
    spec: PlantedSpec,
    write: Callable[[str], object],
    num_processes: int = 1,
) -> None:
    """Makes all runs, writes a line of JSON for each (null for an undefined figure), then the table.

    Each run has a process of one thread: at these sizes a second thread gains less than a second run.
    """
    where = {"commit": commit(), "hardware": hardware(num_processes)}
    results: list[Result] = []
    runs = [(variant, seed) for seed in seeds for variant in variants]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, context, torch.set_num_threads, (1,)) as pool:
        figures_of = pool.map(_run, [(variant, seed, sizes, spec) for variant, seed in runs])
        for (variant, seed), figures in zip(runs, figures_of, strict=True):
            results.append(Result(variant.name, seed, figures))
            plain = {name: None if math.isnan(value) else value for name, value in figures.items()}
            head = {"name": "truth", "variant": variant.name, "seed": seed}
            write(json.dumps(head | plain | {"sizes": asdict(sizes), "planted": asdict(spec)} | where) + "\n")
    write("\n" + "\n".join(table(results)) + "\n")
    write(
        f"\nMeans over {len(seeds)} seed(s), least and most in brackets. {spec.num_latents} planted latents, width "
        f"{spec.d_model} per model; {sizes.num_latents} latents, {sizes.steps} steps of {sizes.batch_size}; "
        f"{sizes.analysis_tokens} held-out tokens. Commit {where['commit']}; {where['hardware']}.\n"
    )


def _run(arguments: tuple[Variant, int, Sizes, PlantedSpec]) -> dict[str, float]:
    return run(*arguments)


def read_results(path: Path) -> list[Result]:
    """The results in the JSON lines of a report; other lines are skipped.

    Raises OSError for a file that cannot be read, and ValueError, which names the line, for a line that is no result.
    """
    found: list[Result] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.startswith("{"):
            continue
        try:
            values = json.loads(line)
            variant, seed = values["variant"], values["seed"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is no result of a report: {error}") from error
        figures = {name: math.nan if value is None else value for name, value in values.items() if name not in _ABOUT}
        found.append(Result(variant, seed, figures))
    return found


def table(results: Sequence[Result]) -> list[str]:
    """Lines of a Markdown table: a row per figure, a column per variant, in the order of the results."""
    variants = list(dict.fromkeys(result.variant for result in results))
    names = list(dict.fromkeys(name for result in results for name in result.figures))
    rows = [["figure", *variants]]
    for name in names:
        values = [
            [r.figures[name] for r in results if r.variant == variant and name in r.figures] for variant in variants
        ]
        rows.append([name, *(cell(each) for each in values)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rows.insert(1, ["-" * width for width in widths])
    return [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]


def cell(values: Sequence[float]) -> str:
    """The mean over seeds with a defined figure, with the least and the most if they differ."""
    defined = [value for value in values if not math.isnan(value)]
    if not defined:
        return "-"
    mean, least, most = sum(defined) / len(defined), min(defined), max(defined)
    return f"{mean:.4g}" if least == most else f"{mean:.4g} [{least:.4g}, {most:.4g}]"


def commit() -> str:
    """The measured commit, with + if the worker's files differ from it; "unknown" outside a Git checkout."""
    git = ["git", "-C", str(Path(__file__).parents[1])]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "."], check=False).returncode
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + "+" * bool(changed)


def hardware(num_processes: int) -> str:
    """Processor, cores and the number of cores that the runs use."""
    return f"{platform.machine()} CPU, {os.cpu_count()} cores, {num_processes} runs of one thread at a time"
