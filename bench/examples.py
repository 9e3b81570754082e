"""The choice of examples: `Store` and `choose` against a Python heap per latent and data set, and a sort for the bands.

Both read the same encoded blocks, and end with the chosen examples, their positions and values.
"""

import heapq
import statistics
from collections import defaultdict
from collections.abc import Iterator

from bench.material import DATASETS, QUICK, AnalysisSizes, crosscoder, held_out
from bench.rows import Figure, Row
from bench.timing import Ratio, interleave
from crosscope_proto.specs import AnalysisSpec
from crosscope_worker.analysis.examples import TextFacts, choose, example_table, peak_windows, silent_texts
from crosscope_worker.analysis.intake import Intake, blocks
from crosscope_worker.analysis.store import Store

Entries = dict[tuple[int, int], list[tuple[int, float]]]
"""(latent, text) to (position, scaled activation)."""


def rows(quick: bool) -> Iterator[Row]:
    """One row: milliseconds per 1 000 tokens."""
    sizes = QUICK if quick else AnalysisSizes()
    harvested = held_out(sizes)
    spec = AnalysisSpec(max_tokens=10 * len(harvested.x), silent_examples=0)
    intakes = list(blocks(crosscoder(sizes), [harvested], spec, DATASETS))
    chosen: dict[str, int] = {}

    def ours() -> None:
        chosen["ours"] = collect(intakes, spec)

    def plain() -> None:
        chosen["plain"] = collect_plainly(intakes, spec)

    took = interleave({"ours": ours, "plain": plain}, sizes.rounds)
    assert chosen["ours"] == chosen["plain"], f"both choose by the same rule, but {chosen}"
    thousands = len(harvested.x) / 1000
    cost = {who: 1000 * statistics.median(seconds) / thousands for who, seconds in took.items()}
    entries = sum(len(intake.block.values) for intake in intakes)
    yield Row(
        name="examples",
        case="top and quantiles",
        sizes=sizes.described()
        | {"tokens": len(harvested.x), "texts": len(harvested.texts), "entries": entries, "examples": chosen["ours"]},
        ours=Figure(cost["ours"], "ms/1000 tokens"),
        reference=Figure(cost["plain"], "ms/1000 tokens", "a Python heap per latent and data set"),
        ratio=Ratio.of(took["plain"], took["ours"]),
    )


def collect(intakes: list[Intake], spec: AnalysisSpec) -> int:
    """The number of examples that the analysis chooses and lays out."""
    store = Store()
    try:
        for intake in intakes:
            for text in intake.texts:
                store.add_text(text)
            store.add(intake.block)
        segments = store.segments()
        choice = choose(segments, peak_windows(segments, store), TextFacts.of(store), DATASETS, spec)
        silent = silent_texts(choice, segments, store, spec)
        return example_table(choice, silent, segments, store, DATASETS)[0].num_rows
    finally:
        store.close()


def collect_plainly(intakes: list[Intake], spec: AnalysisSpec) -> int:
    """The same by loops over the active entries."""
    entries: Entries = defaultdict(list)
    dataset_of: dict[int, int] = {}
    for intake in intakes:
        block = intake.block
        text, dataset, position = block.text.tolist(), block.dataset.tolist(), block.position.tolist()
        for latent, token, value in zip(
            block.latents.tolist(), block.tokens.tolist(), block.scaled.tolist(), strict=True
        ):
            entries[latent, text[token]].append((position[token], value))
            dataset_of[text[token]] = dataset[token]
    heaps: dict[tuple[int, int], list[tuple[float, int]]] = defaultdict(list)
    peaks: dict[tuple[int, int], list[tuple[float, int]]] = defaultdict(list)
    for (latent, text), found in entries.items():
        peak = max(value for _, value in found), -text
        heap = heaps[latent, dataset_of[text]]
        (heapq.heappush if len(heap) < spec.top_examples else heapq.heappushpop)(heap, peak)
        peaks[latent, dataset_of[text]].append(peak)
    examples: list[tuple[int, list[int], list[float]]] = []
    for (latent, _), heap in heaps.items():
        examples += [laid_out(entries, latent, -text) for _, text in sorted(heap, reverse=True)]
    for (latent, _), found in peaks.items():
        for _, text in drawn(sorted(found), spec):
            examples.append(laid_out(entries, latent, -text))
    return len(examples)


def laid_out(entries: Entries, latent: int, text: int) -> tuple[int, list[int], list[float]]:
    """An example's text, positions and values."""
    found = entries[latent, text]
    return text, [position for position, _ in found], [value for _, value in found]


def drawn(ascending: list[tuple[float, int]], spec: AnalysisSpec) -> Iterator[tuple[float, int]]:
    """Evenly spaced members of the bands of a latent's ascending maxima."""
    bands: list[list[tuple[float, int]]] = [[] for _ in range(spec.quantiles)]
    for rank, peak in enumerate(ascending):
        bands[rank * spec.quantiles // len(ascending)].append(peak)
    for band in bands:
        count = min(spec.examples_per_quantile, len(band))
        yield from (band[(2 * pick + 1) * len(band) // (2 * count)] for pick in range(count))
