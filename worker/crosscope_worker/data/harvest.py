"""Turns a stream of texts into activations of the tokens that the policy keeps.

Does not know where texts come from or what activations are used for. Writes no files.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from crosscope_proto.roles import MODEL_NAMES
from crosscope_proto.specs import TokenPolicy
from crosscope_worker.data.packing import pack
from crosscope_worker.data.texts import Text
from crosscope_worker.models.activations import PairActivations
from crosscope_worker.models.norms import NormFilter
from crosscope_worker.ticks import Tick, idle_tick
from crosscope_worker.tokenizer.token_policy import policy_positions
from crosscope_worker.transfer import sent

TOKENS_PER_FORWARD = 8192
WINDOW_FORWARDS = 8
"""Forwards whose texts are packed together."""


class HarvestError(ValueError):
    """Activations that cannot be used; the sentence names the text by its place in the data."""


@dataclass(frozen=True, eq=False)
class Harvest:
    """Activations of the kept tokens of some texts, in the order of the texts."""

    texts: list[Text]
    x: Tensor
    """[token, both] float32, on the pair's device"""
    text: Tensor
    """[token] int64: index into `texts`"""
    position: Tensor
    """[token] int64: position in its text"""
    role: Tensor
    """[token] uint8, TokenRole"""
    dataset: Tensor
    """[token] uint8: index of its text's data set"""


def harvest(
    texts: Iterable[Text],
    activations: PairActivations,
    policy: TokenPolicy,
    tokens_per_forward: int = TOKENS_PER_FORWARD,
    norms: NormFilter | None = None,
    num_before: int = 0,
    tick: Tick = idle_tick,
) -> Iterator[Harvest]:
    """Runs both models over a stream of texts and yields the kept tokens of each window of texts (`windows_of`).

    Within a window texts are packed (`packing.pack`) into forwards of at most `tokens_per_forward` tokens, padding
    counted, or of a single longer text.
    After each forward `tick` hears of the tokens that the policy keeps, outliers included.
    An earlier harvest goes on with `norms`, its filter, and `num_before`, the number of texts that it has read. A new
    filter takes its bounds from the first window.
    Raises HarvestError for a NaN or infinite activation and when the policy keeps no token of the whole stream.
    """
    windows = windows_of(texts, activations, tokens_per_forward)
    return harvest_windows(windows, activations, policy, tokens_per_forward, norms, num_before, tick)


def harvest_windows(
    windows: Iterable[list[Text]],
    activations: PairActivations,
    policy: TokenPolicy,
    tokens_per_forward: int = TOKENS_PER_FORWARD,
    norms: NormFilter | None = None,
    num_before: int = 0,
    tick: Tick = idle_tick,
    is_part: bool = False,
) -> Iterator[Harvest]:
    """`harvest` over texts that are divided into windows already; of a part of the texts no token need be kept."""
    norms = norms or NormFilter(policy.max_norm_ratio, activations.d_model)
    num_texts, kept = num_before, 0
    for window in windows:
        found = _harvest_window(window, activations, policy, norms, tokens_per_forward, tick)
        num_texts += len(window)
        kept += len(found.x)
        yield found
    if num_texts and not kept and not num_before and not is_part:
        raise HarvestError(
            f"the token policy keeps no token of {num_texts} texts; lower skip_first ({policy.skip_first}) "
            f"or raise max_norm_ratio ({policy.max_norm_ratio})"
        )


def windows_of(
    texts: Iterable[Text], activations: PairActivations, tokens_per_forward: int = TOKENS_PER_FORWARD
) -> Iterator[list[Text]]:
    """Divides a stream of texts into windows, runs of texts of about eight forwards.

    Of long rows, which cost the same however full they are, a window fills eight. Reads no text beyond a window before
    the next one is asked for.
    """
    num_tokens = WINDOW_FORWARDS * tokens_per_forward
    return (_full_windows if activations.packs_rows(tokens_per_forward) else _windows)(texts, num_tokens)


def _windows(texts: Iterable[Text], num_tokens: int) -> Iterator[list[Text]]:
    window: list[Text] = []
    size = 0
    for text in texts:
        window.append(text)
        size += len(text.ids)
        if size >= num_tokens:
            yield window
            window, size = [], 0
    if window:
        yield window


def _full_windows(texts: Iterable[Text], num_tokens: int) -> Iterator[list[Text]]:
    """Windows that end before another text as long as their longest might have no room in `num_tokens`.

    Packing leaves a little room unused, for which 1/512 is kept free.
    """
    window: list[Text] = []
    size = longest = 0
    for text in texts:
        window.append(text)
        size, longest = size + len(text.ids), max(longest, len(text.ids))
        if size + longest > num_tokens - num_tokens // 512:
            yield window
            window, size, longest = [], 0, 0
    if window:
        yield window


def _harvest_window(
    window: list[Text],
    activations: PairActivations,
    policy: TokenPolicy,
    norms: NormFilter,
    tokens_per_forward: int,
    tick: Tick,
) -> Harvest:
    found: list[_Found] = []
    lengths = [len(text.ids) for text in window]
    rows_as = activations.shares_rows, activations.packs_rows(tokens_per_forward), activations.regimes(lengths)
    for forward in pack(lengths, tokens_per_forward, *rows_as):
        x = activations.rows(*forward.fill([window[index].ids for index in forward.texts]))
        candidates = [policy_positions(window[index].roles, policy) for index in forward.texts]
        text_of = np.repeat(np.arange(len(forward.texts)), [len(positions) for positions in candidates])
        position_of = np.concatenate(candidates)
        places = forward.rows[text_of] * forward.shape[1] + forward.starts[text_of] + position_of
        flat = x.flatten(0, 1)[sent(torch.from_numpy(places), x.device)]
        found.append(_Found(forward.texts, flat, text_of, position_of, torch.isfinite(flat).all()))
        tick(len(position_of))
    if not torch.stack([each.is_finite for each in found]).all():
        for each in found:
            check_finite(each.x, activations, window, each.texts[each.text], each.position)
    pieces = [(each.x, each.position) for each in found]
    norms.measure(pieces)
    stay = norms(pieces)
    pieces.clear()
    rows: list[tuple[Tensor, np.ndarray] | None] = [None] * len(window)
    while found:
        forward = found.pop()
        for index, part in zip(forward.texts, _kept(forward, stay.pop()), strict=True):
            rows[index] = part
    return _joined(window, [row for row in rows if row is not None])


class _Found(NamedTuple):
    """Tokens of the texts of one forward."""

    texts: np.ndarray
    """[text]: index into the window."""
    x: Tensor
    """[token, both]."""
    text: np.ndarray
    """[token]: index into `texts`, ascending."""
    position: np.ndarray
    """[token]: position in its text."""
    is_finite: Tensor
    """[] bool: asked of the device once a window, so that no forward waits for the one before."""


def _kept(found: _Found, stays: np.ndarray) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Activations and positions of the tokens of each text that stay; `stays: [token]`."""
    num_kept = np.bincount(found.text[stays], minlength=len(found.texts))
    x = found.x if stays.all() else found.x[sent(torch.from_numpy(np.flatnonzero(stays)), found.x.device)]
    positions = np.split(found.position[stays], np.cumsum(num_kept)[:-1])
    return zip(x.split(num_kept.tolist()), positions, strict=True)


def check_finite(
    x: Tensor, activations: PairActivations, texts: Sequence[Text], text: np.ndarray, position: np.ndarray
) -> None:
    """Raises HarvestError that names the first of `x: [token, both]` that is not finite.

    `text, position: [token]`: index of a token's text in `texts`, and position in it.
    """
    if torch.isfinite(x).all():
        return
    dtype = activations.pair.manifest.dtype
    wider = "" if dtype == "float32" else f"run the pair in float32 instead of {dtype}, or "
    for name, part in zip(MODEL_NAMES, x.split(activations.d_model, dim=-1), strict=True):
        for token in torch.nonzero(~torch.isfinite(part).all(dim=-1))[:1].flatten().tolist():
            place = f"{texts[int(text[token])].place}, token {position[token]}"
            raise HarvestError(f"{place}: the {name} model's activation is not finite; {wider}leave the text out")


def _joined(window: list[Text], rows: list[tuple[Tensor, np.ndarray]]) -> Harvest:
    positions = [position for _, position in rows]
    text = np.repeat(np.arange(len(window)), [len(position) for position in positions])
    position = np.concatenate(positions)
    role = np.concatenate([text.roles[kept] for text, kept in zip(window, positions, strict=True)])
    dataset = np.array([text.dataset for text in window], dtype=np.uint8)[text]
    return Harvest(
        texts=window,
        x=torch.cat([x for x, _ in rows]),
        text=torch.from_numpy(text),
        position=torch.from_numpy(position),
        role=torch.from_numpy(role),
        dataset=torch.from_numpy(dataset),
    )
