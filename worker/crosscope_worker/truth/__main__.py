"""`make truth`: trains on planted latents and says what was found of them."""

import argparse
import os
import sys
from collections.abc import Sequence

from crosscope_worker.truth.planted import PlantedSpec
from crosscope_worker.truth.report import VARIANTS, report
from crosscope_worker.truth.run import Sizes


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the report to standard output; `arguments` are the command line's unless given.

    Raises SystemExit with a sentence on standard error for arguments that make no run.
    """
    parser = argparse.ArgumentParser(prog="make truth", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="runs of each variant (default 5)")
    parser.add_argument("--steps", type=int, default=Sizes.steps, help=f"training steps (default {Sizes.steps})")
    names = [variant.name for variant in VARIANTS]
    parser.add_argument("--variants", nargs="+", choices=names, default=names, help="some of the variants only")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help="runs at a time (default: all cores)"
    )
    options = parser.parse_args(arguments)
    for name in ("seeds", "steps", "processes"):
        if (value := getattr(options, name)) < 1:
            parser.error(f"--{name} is {value}; give at least 1")
    chosen = [variant for variant in VARIANTS if variant.name in options.variants]

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    report(chosen, range(options.seeds), Sizes(steps=options.steps), PlantedSpec(), write, options.processes)


if __name__ == "__main__":
    main()
