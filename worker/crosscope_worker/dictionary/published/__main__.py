"""Writes a version in others' layouts.

`python -m crosscope_worker.dictionary.published hub|dashboard VERSION_FOLDER TARGET`

hub: a folder with config.json and model.safetensors, in one of the forks' dialects; dashboard: a SQLite file of
examples (docs/published.md). What the layout cannot say is written to standard error.
"""

import argparse
import sys
from pathlib import Path

from crosscope_worker.dictionary.crosscoder import CrosscoderError
from crosscope_worker.dictionary.published.dashboard import export_dashboard
from crosscope_worker.dictionary.published.export import DIALECTS, export_version


def main() -> int:
    """Runs the export that the command line names; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m crosscope_worker.dictionary.published", description=__doc__)
    parser.add_argument("layout", choices=("hub", "dashboard"))
    parser.add_argument("version", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--dialect", choices=DIALECTS, default=DIALECTS[0], help="of the hub layout's forks")
    arguments = parser.parse_args()
    try:
        if arguments.layout == "hub":
            for sentence in export_version(arguments.version, arguments.target, arguments.dialect):
                sys.stderr.write(f"{sentence}\n")
        else:
            export_dashboard(arguments.version, arguments.target)
    except (CrosscoderError, OSError) as error:
        parser.exit(1, f"{error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
