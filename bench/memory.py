"""Peak resident memory of a training step and of an analysis, each in its own process, against the weights.

    python -m bench.memory train|analyse full|quick    in such a process; writes one line of JSON

Each process first does the same work with tiny sizes. The memory that it holds after that (Python, torch, and what they
load at first use) is subtracted. Reads /proc, so it needs Linux.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.rows import ROOT, Figure, Row
from bench.timing import Ratio
from crosscope_proto.specs import AnalysisSpec, TrainingSpec

MIB = 2**20
CASES = {"train": "a training step, batch_topk", "analyse": "an analysis"}
STATUS = Path("/proc/self/status")
Found = tuple[int, dict[str, object]]
"""Bytes of the weights, and the sizes."""


def rows(quick: bool) -> Iterator[Row]:
    """A row for the training step and one for the analysis; starts both processes at once."""
    if not STATUS.is_file():
        why = f"needs {STATUS}, which this system does not have"
        return iter([Row("memory", case, {}, not_measured=why) for case in CASES.values()])
    command = [sys.executable, "-m", "bench.memory"]
    size = "quick" if quick else "full"
    running = {
        what: subprocess.Popen([*command, what, size], cwd=ROOT, stdout=subprocess.PIPE, text=True) for what in CASES
    }
    return _rows(running)


def _rows(running: dict[str, subprocess.Popen[str]]) -> Iterator[Row]:
    for what, process in running.items():
        said, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(f"the process that measures {what!r} ended with status {process.returncode}")
        found = json.loads(said)
        peak, weights = found["peak_bytes"], found["weights_bytes"]
        yield Row(
            name="memory",
            case=CASES[what],
            sizes=found["sizes"] | {"before_mib": found["before_bytes"] / MIB},
            ours=Figure(peak / MIB, "MiB"),
            reference=Figure(weights / MIB, "MiB", "the weights"),
            ratio=Ratio.of([peak], [weights]),
            ratio_is="times as much",
        )


def train() -> dict[str, Callable[[], Found]]:
    """Two steps of batch_topk, in three sizes."""
    from bench.train_step import LR, QUICK, Sizes, activations, specs
    from crosscope_worker.training.trainer import Trainer

    def work(sizes: Sizes) -> Found:
        spec, batch = specs(sizes)["batch_topk"], sizes.batches[0]
        trainer = Trainer(spec, TrainingSpec(batch_size=batch), (sizes.d_model, sizes.d_model))
        x = activations(trainer, sizes, batch, seed=0)
        for _ in range(2):
            trainer.step(x, LR)
        described = {"d_model": [sizes.d_model] * 2, "num_latents": sizes.num_latents, "k": sizes.k, "batch": batch}
        return sum(weight.nbytes for weight in trainer.weights), described

    larger = Sizes(d_model=128, num_latents=2048, k=8, batches=(64,))
    return {"tiny": lambda: work(QUICK), "quick": lambda: work(larger), "full": lambda: work(Sizes())}


def analysis() -> dict[str, Callable[[], Found]]:
    """All tables of some texts, without the logit lens, in three sizes."""
    from bench.material import DATASETS, QUICK, AnalysisSizes, crosscoder, held_out, tokenizer
    from crosscope_worker.analysis.run import HeldOut, analyse
    from crosscope_worker.tokenizer.tokens import TextTokenizer
    from crosscope_worker.work import silent

    def work(sizes: AnalysisSizes) -> Found:
        model, harvested = crosscoder(sizes), held_out(sizes)
        spec = AnalysisSpec(max_tokens=10 * len(harvested.x))
        analyse(model, HeldOut([harvested], DATASETS, TextTokenizer(tokenizer())), spec, silent)
        weights = sum(tensor.nbytes for tensor in (model.W_enc, model.b_enc, model.W_dec, model.b_dec))
        return weights, sizes.described() | {"tokens": len(harvested.x)}

    larger = AnalysisSizes(d_model=128, num_latents=1024, k=8, num_texts=12, longest=40)
    return {"tiny": lambda: work(QUICK), "quick": lambda: work(larger), "full": lambda: work(AnalysisSizes())}


def status_bytes(name: str) -> int:
    """A size of this process as the kernel reports it; getrusage's peak would include the process that started it."""
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))


def main(what: str, size: str) -> None:
    """Does the work and writes the memory that it took."""
    works = train() if what == "train" else analysis()
    works["tiny"]()
    before = status_bytes("VmRSS")
    weights, sizes = works[size]()
    found: dict[str, Any] = {"before_bytes": before, "peak_bytes": status_bytes("VmHWM") - before}
    print(json.dumps(found | {"weights_bytes": weights, "sizes": sizes}))


if __name__ == "__main__":
    main(*sys.argv[1:])
