"""`make bench`: measures, and writes a line of text and, with --json, a line of JSON for every ratio.

Knows the names of the benches; their modules and docs/benchmarks.md say what they measure against which reference.
"""

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bench.rows import Row, as_text, heading, provenance, write_json

BENCHES = {
    "memory": "peak memory of a training step and of an analysis against the bytes of the weights",
    "train_step": "a training step of batch_topk and l1 against a dense autograd step, and against its floor",
    "variants": "the same of the other dictionaries, at one batch size",
    "peers": "a training step against those of published trainers, where `make peers` has installed them",
    "harvest": "activations of texts against whole models, and against a bare truncated forward",
    "latent_scaling": "all coefficients of every latent in one pass against a dense pass per target",
    "examples": "choosing examples of every latent against a Python heap per latent",
    "generate": "continued prompts against transformers' generate; many callers against one; changed arms",
    "effects": "Compare against both models whole; Attribute against one forward, and against a forward per latent",
    "server": "calls of the server against the worker alone, and against an empty call",
    "callers": "prompts of many callers through server and worker against the worker in batches without calls",
    "prompts": "prompts on a running system against what its worker computes; server: CROSSCOPE_ADDRESS",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benches that `arguments`, by default the command line, name.

    Returns the exit status 0, whether or not targets are met. Raises SystemExit(2) for an unknown name.
    """
    parser = argparse.ArgumentParser(prog="make bench", description="Measure; every line is a ratio of one run.")
    parser.add_argument(
        "--only", nargs="+", choices=BENCHES, default=list(BENCHES), metavar="NAME", help="some benches"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes without targets, to show that everything runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append a line of JSON for every row to FILE")
    parser.add_argument("--list", action="store_true", help="list the benches, and end")
    options = parser.parse_args(arguments)
    if options.list:
        for name, what in BENCHES.items():
            print(f"{name:16}{what}")
        return 0
    print(heading(run := provenance()), flush=True)
    started = (start(name, quick=options.quick) for name in BENCHES if name in options.only)
    # Tiny sizes say nothing about speed, so the processes that a bench starts may run beside the other benches.
    for rows in list(started) if options.quick else started:
        for row in rows:
            print(as_text(row), flush=True)
            if options.json:
                write_json(options.json, row, run)
    return 0


def start(name: str, *, quick: bool) -> Iterator[Row]:
    """The rows of a bench, each measured when it is requested."""
    rows: Callable[[bool], Iterator[Row]] = importlib.import_module(f"bench.{name}").rows
    return rows(quick)


if __name__ == "__main__":
    sys.exit(main())
