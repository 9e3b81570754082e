"""`python -m crosscope_worker.analysis.stability A B`: how many latents of one training another training finds again.

A and B are version folders, or crosscoder folders, whose current version is taken; usually they are trainings of one
recipe with two seeds. For each living latent of A the nearest latent of B is found, by cosine of concatenated decoder
rows (math §7). If only one of the two is a dictionary of differences, the rows of the other count as chat's less
base's. `--map FILE` writes the nearest latent of each as CSV.

Memory beyond the weights: a copy of the living rows of both, and CHUNK_BYTES of cosines. Knows no data.
"""

import argparse
import csv
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from crosscope_proto.artefacts import CURRENT, LATENTS, MANIFEST, LatentClass
from crosscope_proto.roles import BASE, CHAT
from crosscope_worker.analysis.geometry import classes
from crosscope_worker.dictionary.crosscoder import Crosscoder, CrosscoderError, relative_norms
from crosscope_worker.dictionary.load import load_crosscoder

CHUNK_BYTES = 128 << 20
"""Memory for a chunk of cosines."""
THRESHOLDS = (0.7, 0.9)
_CLASSES = (LatentClass.CHAT_ONLY, LatentClass.BASE_ONLY, LatentClass.SHARED, LatentClass.OTHER)


@dataclass(frozen=True, eq=False)
class Matches:
    """For each living latent of a crosscoder, the nearest living latent of another; tensors are [living]."""

    ids: Tensor
    """int64, ascending: latents of the first crosscoder."""
    nearest: Tensor
    """int64: latents of the second crosscoder."""
    cosines: Tensor
    """float32."""
    mutual: Tensor
    """bool: the latent is also the nearest of its nearest. Among equally near latents the lowest id counts."""
    classes: tuple[str, ...]
    """The LatentClass of each latent by relative norm (math §6)."""

    def shares(self, of: LatentClass | None = None) -> "Shares":
        """The figures of the latents of one class, or of all."""
        chosen = torch.tensor([of is None or each == of for each in self.classes], dtype=torch.bool)
        cosines, mutual = self.cosines[chosen], self.mutual[chosen]
        nothing = torch.full((), torch.nan)
        above = tuple(float((cosines >= each).float().mean()) if len(cosines) else float("nan") for each in THRESHOLDS)
        mean, both = (each.float().mean() if len(cosines) else nothing for each in (cosines, mutual))
        return Shares(len(cosines), above, float(both), float(mean))


@dataclass(frozen=True)
class Shares:
    """Figures about some latents; NaN where there are none."""

    num_latents: int
    above: tuple[float, ...]
    """For each of THRESHOLDS, the share of latents whose cosine reaches it."""
    mutual: float
    """Share of latents that are mutually nearest."""
    mean_cosine: float


def match_latents(a: Crosscoder, b: Crosscoder, living_a: Tensor, living_b: Tensor) -> Matches:
    """The nearest living latent of `b` for each living latent of `a`, by cosine of concatenated decoder rows.

    living_…: [latent] bool. Rows are compared in the input space in which `a` was trained: rows of `b` are multiplied
    by the ratio of the two input scales, so that normalised inputs do not change the result. Between a dictionary of
    differences and a crosscoder, `D^chat - D^base` is compared in the models' own scale.

    Raises CrosscoderError if the widths differ or one has no living latent.
    """
    if a.d_model != b.d_model:
        raise CrosscoderError(f"widths differ: {a.d_model} and {b.d_model}; only crosscoders of the same models match")
    ids, other_ids = (living.nonzero().squeeze(1).to(a.device) for living in (living_a, living_b))
    if not len(ids) or not len(other_ids):
        raise CrosscoderError(f"there are {len(ids)} and {len(other_ids)} living latents; both need at least one")
    if is_mixed(a, b):
        of_a, of_b = _difference_rows(a), _difference_rows(b).to(a.device)
    else:
        ratio = torch.tensor([one / other for one, other in zip(a.input_scale, b.input_scale, strict=True)])
        of_a, of_b = a.W_dec, b.W_dec.to(a.device) * ratio.repeat_interleave(torch.tensor(b.d_model)).to(a.device)
    rows = torch.nn.functional.normalize(of_a[ids], dim=1)
    others = torch.nn.functional.normalize(of_b[other_ids], dim=1)
    nearest, cosines = torch.empty_like(ids), rows.new_empty(len(ids))
    back, back_cosines = torch.zeros_like(other_ids), rows.new_full((len(other_ids),), -torch.inf)
    num_rows = max(1, CHUNK_BYTES // (4 * len(others)))
    for start in range(0, len(ids), num_rows):
        piece = slice(start, start + num_rows)
        products = rows[piece] @ others.T
        cosines[piece], nearest[piece] = products.max(dim=1)
        best, at = products.max(dim=0)
        better = best > back_cosines
        back_cosines[better], back[better] = best[better], at[better] + start
    mutual = back[nearest] == torch.arange(len(ids), device=a.device)
    living = living_a.cpu().numpy()
    found = classes(relative_norms(a).cpu().numpy(), living.astype(np.int64))[living]
    return Matches(ids.cpu(), other_ids[nearest].cpu(), cosines.cpu(), mutual.cpu(), tuple(map(str, found)))


def is_mixed(a: Crosscoder, b: Crosscoder) -> bool:
    """Whether one is a dictionary of differences and the other is not."""
    return a.streams.is_difference != b.streams.is_difference


def _difference_rows(crosscoder: Crosscoder) -> Tensor:
    """`D^chat - D^base` in the models' own scale, [latent, d_model]; a dictionary of differences has no base rows."""
    base, chat = (crosscoder.decoder(model) / crosscoder.input_scale[model] for model in (BASE, CHAT))
    return chat - base


def living_latents(folder: Path, num_latents: int) -> Tensor:
    """Which latents fired in a version's analysis, [latent] bool; all of them if there was no analysis.

    Raises CrosscoderError if the table cannot be read or belongs to another crosscoder.
    """
    path = folder / LATENTS
    if not path.is_file():
        return torch.ones(num_latents, dtype=torch.bool)
    try:
        num_active = pq.read_table(path, columns=["num_active"]).column("num_active").to_numpy()
    except (OSError, pa.ArrowException, KeyError) as error:
        raise CrosscoderError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if len(num_active) != num_latents:
        raise CrosscoderError(f"{path} has {len(num_active)} rows, but the crosscoder {num_latents} latents")
    return torch.from_numpy(num_active > 0)


def find_version(folder: Path) -> Path:
    """The folder itself, or the current version of a crosscoder's folder.

    Raises CrosscoderError if there is no such folder or CURRENT names no version.
    """
    if not folder.is_dir():
        raise CrosscoderError(f"{folder} is no folder; name a crosscoder's folder or one of its versions")
    if (folder / MANIFEST).is_file() or not (folder / CURRENT).is_file():
        return folder
    version = folder / "versions" / (folder / CURRENT).read_text(encoding="utf-8").strip()
    if not (version / MANIFEST).is_file():
        raise CrosscoderError(f"{folder / CURRENT} names {version.name}, which is not there; name a version's folder")
    return version


def write_map(path: Path, matches: Matches) -> None:
    """Writes one CSV row for each living latent: latent, nearest, cosine, whether mutual, class. Raises OSError."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("latent", "nearest", "cosine", "mutual", "latent_class"))
        columns = [each.tolist() for each in (matches.ids, matches.nearest, matches.cosines, matches.mutual)]
        for latent, nearest, cosine, mutual, of in zip(*columns, matches.classes, strict=True):
            rows.writerow((latent, nearest, f"{cosine:.6f}", str(mutual).lower(), of))


def report(folders: Sequence[Path], device: str, write: Callable[[str], object], map_file: Path | None = None) -> None:
    """Matches two crosscoders, writes a table and, if asked for, the map. Raises CrosscoderError, OSError."""
    versions = [find_version(folder) for folder in folders]
    one, other = (load_crosscoder(version, device) for version in versions)
    living = [living_latents(version, cc.num_latents) for version, cc in zip(versions, (one, other), strict=True)]
    matches = match_latents(one, other, living[0], living[1])
    for letter, version, found in zip("AB", versions, living, strict=True):
        write(f"{letter}  {version}: {int(found.sum())} of {len(found)} latents living\n")
    if is_mixed(one, other):
        letter = "A" if one.streams.is_difference else "B"
        write(f"{letter} is a dictionary of differences: rows of the other count as chat's less base's\n")
    if map_file is not None:
        write_map(map_file, matches)
    heads = (*(f"cos >= {each}" for each in THRESHOLDS), "mutual", "mean cos")
    write(f"\n{'nearest in B':14}{'latents':>9}" + "".join(f"{head:>12}" for head in heads) + "\n")
    for of in (None, *_CLASSES):
        shares = matches.shares(of)
        values = "".join(f"{each:12.1%}" for each in (*shares.above, shares.mutual)) if shares.num_latents else ""
        mean = f"{shares.mean_cosine:12.3f}" if shares.num_latents else ""
        write(f"{of or 'all':14}{shares.num_latents:9}{values}{mean}\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the table to standard output; `arguments` are the command line's unless given.

    Raises SystemExit(2) with a sentence on standard error for folders that cannot be compared.
    """
    parser = argparse.ArgumentParser(prog="python -m crosscope_worker.analysis.stability", description=__doc__)
    parser.add_argument("a", type=Path, help="a crosscoder's folder, or one of its versions")
    parser.add_argument("b", type=Path, help="the other one")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where cosines are computed")
    parser.add_argument("--map", type=Path, metavar="FILE", help="write the nearest latent of each as CSV")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.exit(2, "no CUDA device is available; leave --device out\n")
    try:
        report((options.a, options.b), options.device, sys.stdout.write, options.map)
    except (CrosscoderError, OSError) as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
