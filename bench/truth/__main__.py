"""`make truth`: trains on planted latents and reports which of them were found."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from bench.truth.planted import PlantedSpec
from bench.truth.report import VARIANTS, read_results, report, table
from bench.truth.run import Sizes


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the report to standard output; `arguments` are by default those of the command line.

    Raises SystemExit with a message on standard error for arguments that describe no run.
    """
    parser = argparse.ArgumentParser(prog="make truth", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="runs of each variant (default 5)")
    parser.add_argument("--first-seed", type=int, default=0, help="seed of the first of them (default 0)")
    parser.add_argument("--steps", type=int, default=Sizes.steps, help=f"training steps (default {Sizes.steps})")
    parser.add_argument("--latents", type=int, default=Sizes.num_latents, help=f"(default {Sizes.num_latents})")
    names = [variant.name for variant in VARIANTS]
    parser.add_argument("--variants", nargs="+", choices=names, default=names, help="some of the variants only")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help="runs at a time (default: all cores)"
    )
    parser.add_argument("--table", nargs="+", type=Path, metavar="FILE", help="run nothing: the table of these lines")
    options = parser.parse_args(arguments)
    for name in ("seeds", "steps", "latents", "processes"):
        if (value := getattr(options, name)) < 1:
            parser.error(f"--{name} is {value}; give at least 1")
    if options.first_seed < 0:
        parser.error(f"--first-seed is {options.first_seed}; give 0 or more")
    if options.table:
        try:
            results = [result for path in options.table for result in read_results(path)]
        except (OSError, ValueError) as error:
            parser.error(str(error))
        _write("\n".join(table(results)) + "\n")
        return
    chosen = [variant for variant in VARIANTS if variant.name in options.variants]
    for variant in chosen:
        try:
            variant.spec(options.latents)
        except ValidationError as error:
            parser.error(f"--latents is {options.latents}, too few for {variant.name}: {error.errors()[0]['msg']}")
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    sizes = Sizes(steps=options.steps, num_latents=options.latents)
    report(chosen, seeds, sizes, PlantedSpec(), _write, options.processes)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
