"""Fidelity of a crosscoder to its models: spliced reconstructions and the causal patch test (math §7).

*Splicing*: the reconstruction (or zeros) replaces the output of the layer, and the rest of that model runs.

*Causal patch*: the rest of the chat model runs on `h = x^base + sum_{j in S} f_j (D_j^chat - D_j^base)`.

Only tokens that the token policy keeps are replaced; the others keep their own model's activation. A prediction counts
if it is made at such a token and there is a next token. Each model runs to the layer once; only the rest runs again.

Memory: a forward of at most BATCH_TOKENS tokens and its hidden states for each replacement; codes in pieces of
CODE_BYTES, three of them in memory at a time; logits in pieces of LOGIT_BYTES, about five of them.

Knows nothing about single latents.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from crosscope_proto.artefacts import LatentClass
from crosscope_proto.roles import BASE, CHAT, MODEL_NAMES
from crosscope_proto.stages import Stage
from crosscope_worker.analysis.errors import AnalysisError
from crosscope_worker.analysis.whole_texts import Splicing, WholeTexts, batches, read
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.models.norms import NormFilter
from crosscope_worker.models.places import PairError
from crosscope_worker.models.upper_half import UpperHalf
from crosscope_worker.work import Progress

if TYPE_CHECKING:
    import pyarrow as pa

CODE_BYTES = LOGIT_BYTES = 64 << 20
FALLBACK_SHARE = 0.05
"""Share of the living latents that is patched if no latent is chat-specific."""


class _Means:
    """Means of figures over tokens, in float64."""

    def __init__(self) -> None:
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._counts: defaultdict[str, int] = defaultdict(int)

    def add(self, name: str, values: Tensor) -> None:
        self._sums[name] += float(values.sum(dtype=torch.float64))
        self._counts[name] += values.numel()

    def found(self) -> dict[str, float]:
        """The mean of every figure that has at least one token."""
        return {name: self._sums[name] / count for name, count in self._counts.items() if count}


def spliced_half(model: PreTrainedModel, layer: int) -> UpperHalf:
    """A model from a layer on. Raises AnalysisError with the way out for a model that cannot be run like that."""
    try:
        return UpperHalf(model, layer)
    except PairError as error:
        way_out = (
            "set analysis.spliced_tokens to 0 and analysis.causal to null to go without cross-entropy, KL recovered "
            "and causal effects"
        )
        raise AnalysisError(f"{error}; {way_out}") from error


def fidelity(
    crosscoder: Crosscoder, splicing: Splicing, patched: Tensor, num_tokens: int, progress: Progress
) -> dict[str, float]:
    """Runs both models on whole texts until `num_tokens` of their tokens were kept; returns figures by name.

    For each model m, means over all predictions, in nats: ce_clean_m, ce_spliced_m, ce_zero_m, and `ce_recovered_m =
    (zero - spliced) / (zero - clean)`; kl_spliced_m = KL(clean ‖ spliced), kl_zero_m = KL(clean ‖ zero), and
    `kl_recovered_m = 1 - kl_spliced_m / kl_zero_m`. A dictionary of differences reconstructs neither model and has none
    of these; a dictionary of one model has only that model's.

    `patched: [any]` are the ids of S. Means of KL(chat ‖ patched) over conversations, in nats: kl_patch_…; with S empty
    kl_base_…; with every latent in S kl_full_…. Each has three forms: _all for predictions of assistant content,
    _first9 for the first nine tokens of each assistant message, _template for predictions made at template tokens.
    patch_latents is the size of S. All these are missing if there are no conversations, if the models' widths differ,
    or if only one model is reconstructed.

    With `num_tokens` 0 nothing is measured. A ratio with denominator 0 is left out. Raises HarvestError for an
    activation that is not finite and AnalysisError for a model that cannot run from the layer on; whatever `progress`
    raises passes through.
    """
    if num_tokens == 0:
        return {}
    progress(Stage.FIDELITY, 0.0, "running both models with reconstructions spliced in")
    activations, policy = splicing.activations, splicing.policy
    pair, layer = activations.pair, activations.layer
    uppers = [spliced_half(model, layer) for model in pair.models]
    norms = NormFilter(policy.max_norm_ratio, pair.d_model, splicing.norms and splicing.norms.bounds)
    patches = pair.d_model[BASE] == pair.d_model[CHAT] and crosscoder.streams.patches
    means, seen = _Means(), 0
    with torch.inference_mode():
        for group in batches(splicing.texts, num_tokens, policy, activations):
            batch = read(group, activations, policy, norms)
            seen += int(batch.kept.sum())
            x_hat, chosen, every = _decoded(crosscoder, batch.x[batch.kept], patched)
            for model, upper in enumerate(uppers):
                inputs: dict[str, Tensor] = {}
                if model in crosscoder.streams.reconstructs:
                    reconstruction = x_hat[:, crosscoder.model_slice(model)]
                    inputs |= {"spliced": reconstruction, "zero": torch.zeros_like(reconstruction)}
                if model == CHAT and patches and batch.groups:
                    base = batch.x[batch.kept][:, crosscoder.model_slice(BASE)]
                    inputs |= {"base": base, "patch": base + chosen, "full": base + every}
                if inputs:
                    clean = batch.x[:, :, crosscoder.model_slice(model)]
                    _add(means, MODEL_NAMES[model], batch, *_predictions(upper, batch, clean, inputs))
            progress(Stage.FIDELITY, min(1.0, seen / num_tokens), f"{seen} of {num_tokens} tokens spliced")
    return _figures(means.found(), len(patched))


def patched_latents(latents: "pa.Table") -> Tensor:
    """Ids of the latents that the causal patch adds, from a table of LATENT_COLUMNS.

    They are the latents of class chat_only. If there are none: the FALLBACK_SHARE of the living latents, at least one,
    with the largest relative norm. A dictionary of differences has no relative norm; there the smallest |beta_act^base
    / beta_act^chat| decides (math §2).
    """

    def column(name: str) -> np.ndarray:
        return latents.column(name).to_numpy(zero_copy_only=False)

    living = column("num_active") > 0
    rel_norm = column("rel_norm").astype(np.float64)
    found = np.flatnonzero(column("latent_class") == str(LatentClass.CHAT_ONLY))
    if len(found) == 0 and living.any():
        order = rel_norm
        if not np.isfinite(rel_norm).any():
            with np.errstate(divide="ignore", invalid="ignore"):
                order = -np.abs(column("beta_act_base").astype(np.float64) / column("beta_act_chat"))
        order = np.where(living, order, -np.inf)  # NaN sorts last
        found = np.sort(np.argsort(-order, kind="stable")[: max(1, int(FALLBACK_SHARE * living.sum()))])
    return torch.from_numpy(found)


def _decoded(crosscoder: Crosscoder, x: Tensor, patched: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Reconstructions [token, both] of `x: [token, both]`, and the differences that S and that all latents make.

    The latter two are `sum_j f_j (D_j^chat - D_j^base)`, [token, d_model], in the models' own scale, without biases;
    they are empty if the models' widths differ.
    """
    pieces = x.to(crosscoder.device).split(max(1, CODE_BYTES // (4 * crosscoder.num_latents)))
    nothing = crosscoder.decode(crosscoder.b_enc.new_zeros(1, crosscoder.num_latents))
    base, chat = (crosscoder.model_slice(model) for model in (BASE, CHAT))
    in_set = torch.zeros_like(crosscoder.b_enc)
    in_set[patched.to(crosscoder.device)] = 1.0

    def difference(x_hat: Tensor) -> Tensor:
        if crosscoder.d_model[BASE] != crosscoder.d_model[CHAT]:
            return x_hat[:, :0]
        added = x_hat - nothing
        return added[:, chat] - added[:, base]

    found: list[tuple[Tensor, ...]] = []
    for piece in pieces:
        code = crosscoder.encode(piece)
        x_hat = crosscoder.decode(code)
        found.append((x_hat, difference(crosscoder.decode(code, in_set)), difference(x_hat)))
    x_hat, chosen, every = (torch.cat(parts).to(x.device) for parts in zip(*found, strict=True))
    return x_hat, chosen, every


def _predictions(
    upper: UpperHalf, batch: WholeTexts, clean: Tensor, inputs: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Cross-entropies of a model unchanged ("clean") and with each replacement, and KL(clean ‖ replaced), in nats.

    clean: [batch, pos, d_model]; inputs: [kept token, d_model] each. Values are [prediction] float32, on the CPU.
    """
    hidden = {"clean": upper.hidden(batch.ids, clean)[batch.predicts]}
    for name, replacement in inputs.items():
        x = clean.clone()
        x[batch.kept] = replacement
        hidden[name] = upper.hidden(batch.ids, x)[batch.predicts]
    next_ids = batch.ids.roll(-1, dims=1)[batch.predicts]
    ce = {name: torch.empty(len(next_ids)) for name in hidden}
    kl = {name: torch.empty(len(next_ids)) for name in inputs}
    rows = max(1, LOGIT_BYTES // (4 * upper.vocabulary))
    for start in range(0, len(next_ids), rows):
        at = slice(start, start + rows)
        reference = upper.logits(hidden["clean"][at]).log_softmax(dim=1)
        probability = reference.exp()
        ce["clean"][at] = -reference.gather(1, next_ids[at, None])[:, 0].cpu()
        for name in inputs:
            log = upper.logits(hidden[name][at]).log_softmax(dim=1)
            ce[name][at] = -log.gather(1, next_ids[at, None])[:, 0].cpu()
            kl[name][at] = log.neg_().add_(reference).mul_(probability).sum(dim=1).cpu()
    return ce, kl


def _add(means: _Means, model: str, batch: WholeTexts, ce: dict[str, Tensor], kl: dict[str, Tensor]) -> None:
    for kind in ("clean", "spliced", "zero") if "spliced" in ce else ():
        means.add(f"ce_{kind}_{model}", ce[kind])
    for kind, values in kl.items():
        if kind in ("spliced", "zero"):
            means.add(f"kl_{kind}_{model}", values)
        else:
            for group, where in batch.groups.items():
                means.add(f"kl_{kind}_{group}", values[where[batch.predicts].cpu()])


def _figures(means: dict[str, float], num_patched: int) -> dict[str, float]:
    """The means, and the shares recovered."""
    figures = dict(means)
    for model in [each for each in MODEL_NAMES if f"ce_clean_{each}" in means]:
        clean, spliced, zero = (means[f"ce_{kind}_{model}"] for kind in ("clean", "spliced", "zero"))
        if zero != clean:
            figures[f"ce_recovered_{model}"] = (zero - spliced) / (zero - clean)
        if (to_zero := means[f"kl_zero_{model}"]) != 0:
            figures[f"kl_recovered_{model}"] = 1 - means[f"kl_spliced_{model}"] / to_zero
    if "kl_base_all" in means:
        figures["patch_latents"] = float(num_patched)
    return figures
