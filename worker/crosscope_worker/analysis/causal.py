"""Causal effects of single latents: ablated in chat, and put into base, what changes in the predictions (math §11).

Both models run to the layer once a batch. From there on they run once for each text, and for each chosen latent that
fires in it: chat without the latent, base with its chat row, base without it. A text in which it does not fire counts
as 0, and so does a prediction before the first token at which it fires.

Memory: hidden states of BATCH_TOKENS tokens a model and run; logits in pieces of LOGIT_BYTES, about six of them.

What an ablation is, `effects` says. Knows no tables.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from crosscope_proto.causal_columns import CAUSAL_EFFECTS, CAUSAL_GROUPS, causal_column
from crosscope_proto.roles import BASE, CHAT
from crosscope_proto.specs import CausalSpec
from crosscope_proto.stages import Stage
from crosscope_worker.analysis.causal_choice import choose_latents
from crosscope_worker.analysis.correlations import Correlations
from crosscope_worker.analysis.errors import AnalysisError
from crosscope_worker.analysis.fidelity import spliced_half
from crosscope_worker.analysis.text_means import TextMeans
from crosscope_worker.analysis.whole_texts import BATCH_TOKENS, Splicing, WholeTexts, batches, read
from crosscope_worker.data.texts import Text
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.effects.interventions import Action, Codes, Intervention, Site, Steering
from crosscope_worker.effects.predictions import divergence, log_probabilities
from crosscope_worker.models.norms import NormFilter
from crosscope_worker.models.places import PairError
from crosscope_worker.work import Progress

LOGIT_BYTES = 64 << 20
_GROUPS = tuple(CAUSAL_GROUPS)


@dataclass(frozen=True)
class CausalEffects:
    """Effects of the chosen latents, as columns of the whole dictionary."""

    columns: dict[str, NDArray[np.float32]]
    """CAUSAL_COLUMNS by name, [latent]; NaN for latents that were not chosen."""
    reason: str = field(default="", kw_only=True)
    """Why none was measured; empty otherwise."""
    metrics: dict[str, float]
    """causal_latents; causal_latents_left_out, those beyond spec.num_latents; causal_latents_short, those whose sample
    ended early; causal_texts, the conversations; and for each group of predictions causal_gap_…, the mean
    KL(chat‖base), its standard error …_se, and the number of predictions causal_predictions_…."""


@dataclass(frozen=True, eq=False)
class _Run:
    """One text of a batch, without padding, and the chosen latents that fire in it."""

    ids: Tensor
    """[pos]."""
    x: Tensor
    """[pos, both]."""
    predicts: Tensor
    """[pos] bool."""
    groups: Tensor
    """[group, pos] bool; none are true in a document."""
    fires: Tensor
    """[pos, row] bool."""
    deltas: dict[str, Tensor]
    """What is added to a model's stream, [row, pos, d_model]: "ablated", "transplanted" and "base_ablated"."""

    @cached_property
    def at(self) -> Tensor:
        """Positions of the predictions that count in some group."""
        return self.groups.any(0).nonzero()[:, 0]


class _Measuring:
    """The sums of all chosen latents, text after text."""

    def __init__(self, crosscoder: Crosscoder, sample: Splicing, latents: Tensor, spec: CausalSpec) -> None:
        self._crosscoder, self._spec, self._latents = crosscoder, spec, latents
        self._uppers = [spliced_half(model, sample.activations.layer) for model in sample.activations.pair.models]
        self._sparsifier = crosscoder.sparsifier()
        actions = {"ablated": (CHAT, Action.ABLATE), "base_ablated": (BASE, Action.ABLATE)}
        if crosscoder.d_model[BASE] == crosscoder.d_model[CHAT]:
            actions["transplanted"] = BASE, Action.TRANSPLANT
        self._steerings = {
            name: [self._steering(model, action, latent) for latent in latents.tolist()]
            for name, (model, action) in actions.items()
        }
        sizes = [upper.vocabulary for upper in self._uppers]
        self._vocabulary = min(sizes)
        """Ids that both models have; a wider embedding is padded."""
        self._at_once = max(1, LOGIT_BYTES // (4 * max(sizes)))
        """Tokens of one piece of logits."""
        shape = len(latents), len(CAUSAL_EFFECTS), len(_GROUPS)
        self.effects = TextMeans(shape, (len(latents), 1, len(_GROUPS)))
        self.gap = TextMeans((len(_GROUPS),))
        self.equivalence = Correlations(len(latents))
        self.texts = np.zeros(len(latents), np.int64)
        """Texts that were run, [chosen latent]."""
        self.tokens = np.zeros(len(latents), np.int64)
        """Their tokens."""

    def _steering(self, model: int, action: Action, latent: int) -> Steering:
        # Maxima matter to additions alone.
        maxima = torch.zeros(self._crosscoder.num_latents)
        return Steering(self._crosscoder, maxima, model, [Intervention((latent,), action)], self._sparsifier)

    @property
    def open(self) -> NDArray[np.bool_]:
        """[chosen latent] whether its sample goes on."""
        return self.tokens < self._spec.latent_tokens

    def add(self, batch: WholeTexts, row: int, text: Text) -> None:
        """Adds a text of a batch to the sums of every latent whose sample goes on."""
        length = len(text.ids)
        x, kept = batch.x[row, :length], batch.kept[row, :length]
        none = torch.zeros_like(kept)
        groups = torch.stack([batch.groups[name][row, :length] if batch.groups else none for name in _GROUPS])
        codes = Codes(self._crosscoder, self._sparsifier, x)
        base, chat = (code[:, self._latents] for code in codes.by_models)
        fires = ((base != 0) | (chat != 0)) & kept[:, None]
        open_latents = np.flatnonzero(self.open)
        firing = open_latents[fires.any(0).cpu().numpy()[open_latents]]
        counts = groups.sum(1).cpu().numpy()
        sums, gap = np.zeros((len(self._latents), len(CAUSAL_EFFECTS), len(_GROUPS))), np.zeros(len(_GROUPS))
        if not counts.any() and len(firing) == 0:
            return
        roles = torch.from_numpy(text.roles).to(x.device)
        site = Site(torch.arange(length, device=x.device), roles, none, ~kept)
        rows = max(1, BATCH_TOKENS // length)
        for chunk in [firing[at : at + rows] for at in range(0, len(firing), rows)] or [firing]:
            deltas = self._deltas(x, site, codes, chunk)
            chosen = fires[:, torch.from_numpy(chunk).to(x.device)]
            run = _Run(batch.ids[row, :length], x, batch.predicts[row, :length], groups, chosen, deltas)
            found, gap = self._run(run, chunk)
            sums[chunk] = found
        self.effects.add(sums[open_latents], counts, open_latents)
        self.gap.add(gap, counts)
        self.texts[firing] += 1
        self.tokens[firing] += length

    def _deltas(self, x: Tensor, site: Site, codes: Codes, chunk: NDArray[np.int64]) -> dict[str, Tensor]:
        return {
            name: torch.stack([steerings[i].change(x, site, codes).delta for i in chunk.tolist()])
            for name, steerings in self._steerings.items()
            if len(chunk)
        }

    def _run(self, run: _Run, chunk: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Sums over a text's predictions: effects [row, effect, group], and KL(chat‖base) [group]."""
        hidden: dict[str, Tensor] = {}
        for model, name in ((BASE, "base"), (CHAT, "chat")):
            clean = run.x[:, self._crosscoder.model_slice(model)]
            hidden[name] = self._uppers[model].hidden(run.ids[None], clean[None])[0]
            for change, delta in run.deltas.items():
                if (CHAT if change == "ablated" else BASE) == model:
                    hidden[change] = self._uppers[model].hidden(run.ids.expand(len(delta), -1), clean + delta)
        if len(chunk):
            self._add_equivalence(run, hidden, chunk)
        return self._kl(run, hidden)

    def _logits(self, model: int, hidden: Tensor) -> Tensor:
        """[..., the model's vocabulary] of hidden states [..., d_model]."""
        return self._uppers[model].logits(hidden.reshape(-1, hidden.shape[-1])).view(*hidden.shape[:-1], -1)

    def _log_probabilities(self, model: int, hidden: Tensor) -> Tensor:
        """[..., vocabulary] of hidden states [..., d_model]."""
        try:
            return log_probabilities(self._logits(model, hidden), self._vocabulary)
        except PairError as error:
            raise AnalysisError(f"{error}, or set analysis.causal to null to go without causal effects") from error

    def _kl(self, run: _Run, hidden: dict[str, Tensor]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        num_rows = run.fires.shape[1]
        found = np.zeros((num_rows, len(CAUSAL_EFFECTS), len(_GROUPS)))
        total = np.zeros(len(_GROUPS))
        # Before its first token a latent changes nothing, whatever rounding says.
        after = run.fires.cumsum(0).clamp_(max=1).T.double()
        for at in run.at.split(self._at_once) if len(run.at) else ():
            groups = run.groups[:, at].double()
            chat = self._log_probabilities(CHAT, hidden["chat"][at])
            base = self._log_probabilities(BASE, hidden["base"][at])
            gap = _kl(chat, base)
            total += (groups @ gap).cpu().numpy()
            a_call = max(1, self._at_once // len(at))
            for rows in (slice(first, first + a_call) for first in range(0, num_rows, a_call)):
                ablated = self._log_probabilities(CHAT, hidden["ablated"][rows][:, at])
                kl_ablated = _kl(ablated, base)
                figures = [gap - kl_ablated, torch.full_like(gap, torch.nan).expand_as(kl_ablated)]
                if "transplanted" in hidden:
                    moved = self._log_probabilities(BASE, hidden["transplanted"][rows][:, at])
                    figures[1] = gap - _kl(chat, moved)
                figures.append(_kl(chat, ablated))
                effects = torch.stack(figures, 1) * after[rows][:, None, at]
                found[rows] += torch.einsum("rep,gp->reg", effects, groups).cpu().numpy()
        return found, total

    def _add_equivalence(self, run: _Run, hidden: dict[str, Tensor], chunk: NDArray[np.int64]) -> None:
        rows, positions = (run.fires & run.predicts[:, None]).T.nonzero(as_tuple=True)
        for row, at in zip(rows.split(self._at_once), positions.split(self._at_once), strict=True):
            if len(row) == 0:
                continue
            effects: list[Tensor] = []
            for model, clean, changed in ((BASE, "base", "base_ablated"), (CHAT, "chat", "ablated")):
                effect = self._logits(model, hidden[changed][row, at]) - self._logits(model, hidden[clean][at])
                effect = effect[:, : self._vocabulary]
                effects.append(effect - effect.mean(-1, keepdim=True))
            base, chat = effects
            products = torch.stack([(base * base).sum(-1), (chat * chat).sum(-1), (base * chat).sum(-1)], 1)
            self.equivalence.add(chunk[row.cpu().numpy()], products.double().cpu().numpy())


def measure_causal(
    crosscoder: Crosscoder, sample: Splicing, table: pa.Table, spec: CausalSpec, progress: Progress
) -> CausalEffects:
    """Chooses latents from a table of LATENT_COLUMNS, and measures their effects on whole texts.

    Raises HarvestError for an activation that is not finite, and AnalysisError for a model that cannot run from the
    layer on, models of different vocabularies or a latent that there is not; whatever `progress` raises passes through.
    """
    choice = choose_latents(table, spec)
    latents = choice.latents.to(crosscoder.device)
    progress(Stage.CAUSAL, 0.0, f"changing {len(latents)} latents, one at a time")
    activations, policy = sample.activations, sample.policy
    norms = NormFilter(policy.max_norm_ratio, activations.pair.d_model, sample.norms and sample.norms.bounds)
    seen = 0
    with torch.inference_mode():
        measuring = _Measuring(crosscoder, sample, latents, spec)
        for group in batches(sample.texts, spec.tokens, policy, activations):
            batch = read(group, activations, policy, norms)
            for row, text in enumerate(group):
                measuring.add(batch, row, text)
                seen += int(batch.kept[row].sum())
                share = min(1.0, seen / spec.tokens)
                progress(Stage.CAUSAL, share, f"{seen} of {spec.tokens} tokens run with latents changed")
    columns = _columns(crosscoder.num_latents, choice.latents.numpy(), measuring)
    metrics = _metrics(measuring) | {"causal_latents_left_out": float(choice.num_left_out)}
    return CausalEffects(columns, metrics, reason=choice.reason)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p‖q) in nats, over the last axis, float64."""
    return divergence(log_p, log_q, torch.float64)


def _columns(num_latents: int, latents: NDArray[np.int64], measuring: _Measuring) -> dict[str, NDArray[np.float32]]:
    def whole(values: NDArray[np.generic]) -> NDArray[np.float32]:
        column = np.full(num_latents, np.nan, np.float32)
        column[latents] = values
        return column

    found: dict[str, NDArray[np.float32]] = {}
    means, errors = measuring.effects.means(), measuring.effects.errors()
    for e, effect in enumerate(CAUSAL_EFFECTS):
        for g, group in enumerate(_GROUPS):
            found[causal_column(effect, group)] = whole(means[:, e, g])
            found[f"{causal_column(effect, group)}_se"] = whole(errors[:, e, g])
    return found | {
        "causal_texts": whole(measuring.texts),
        "causal_equivalence": whole(measuring.equivalence.found()),
        "causal_equivalence_tokens": whole(measuring.equivalence.tokens),
    }


def _metrics(measuring: _Measuring) -> dict[str, float]:
    gap = measuring.gap
    found = {
        "causal_latents": float(len(measuring.texts)),
        "causal_latents_short": float((~measuring.open).sum()),
        "causal_texts": float(gap.num_texts.max()),
    }
    for group, mean, error, num in zip(_GROUPS, gap.means(), gap.errors(), gap.num_tokens, strict=True):
        found[f"causal_gap_{group}"] = float(mean)
        found[f"causal_gap_{group}_se"] = float(error)
        found[f"causal_predictions_{group}"] = float(num)
    return found
