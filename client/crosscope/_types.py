"""Plain results: frozen records of what the server says. Know nothing about gRPC or about where they came from."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from crosscope._public import public
from crosscope._tables import number
from crosscope_proto.left_out import left_out
from crosscope_proto.roles import TEMPLATE_ROLES, LeftOut, TokenRole

if TYPE_CHECKING:
    import numpy as np


@public
@dataclass(frozen=True)
class Estimate:
    """An estimate and its standard error; NaN where undefined."""

    value: float
    se: float

    def __str__(self) -> str:
        return "undefined" if math.isnan(self.value) else f"{number(self.value)} ± {number(self.se, 2)}"


@public
@dataclass(frozen=True)
class ModelEstimates:
    """Coefficients of one target in both models."""

    base: Estimate
    chat: Estimate


@public
@dataclass(frozen=True)
class LatentScaling:
    """Latent scaling along one decoder direction (math §4)."""

    activation: ModelEstimates
    activation_no_bias: ModelEstimates
    reconstruction: ModelEstimates
    error: ModelEstimates
    nu_err: Estimate
    nu_rec: Estimate


@public
@dataclass(frozen=True)
class Neighbour:
    """A nearby latent, by cosine of both models' decoder rows side by side."""

    latent: int
    cosine: float


@public
@dataclass(frozen=True)
class CoActive:
    """A latent that fires on the same tokens."""

    latent: int
    index: float
    """Tokens on which both fire, as a share of those on which either does (Jaccard index)."""


@public
@dataclass(frozen=True)
class Tokens:
    """The tokens of one text; all lists have one entry a token, but for left_out, which may have none."""

    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    roles: tuple[TokenRole, ...]
    left_out: tuple[LeftOut, ...] = ()
    """Why training left out tokens like these, LeftOut.KEPT (0) where it did not. Of encoded prompts; else empty."""
    dropped_reasoning: tuple[int, ...] = ()
    """Messages whose reasoning the chat template does not print, or not as a whole."""

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[tuple[int, str, TokenRole]]:
        return iter(zip(self.ids, self.pieces, self.roles, strict=True))

    @property
    def text(self) -> str:
        """The pieces joined."""
        return "".join(self.pieces)

    @property
    def is_template(self) -> tuple[bool, ...]:
        """Whether each token is BOS, a role header or a turn end."""
        return tuple(role in TEMPLATE_ROLES for role in self.roles)

    def role_name(self, token: int) -> str:
        """What a token is for, in words, and why training left out tokens like it."""
        role = self.roles[token].name.lower()
        reason = self.left_out[token] if self.left_out else LeftOut.KEPT
        return role if reason == LeftOut.KEPT else f"{role}, left out: {reason.name.lower()}"


@public
@dataclass(frozen=True)
class CrosscoderInfo:
    """A published crosscoder's card."""

    name: str
    version_id: str
    pair: str
    base_model: str
    chat_model: str
    layer: int
    variant: str
    num_latents: int
    d_model: tuple[int, ...]
    """Residual-stream widths, base first."""
    datasets: tuple[str, ...]
    """In the order of `Latent.dataset_shares`."""
    analysis_tokens: int
    training_tokens: int
    metrics: Mapping[str, float]
    """fve_base_inliers and fve_chat_inliers, the headline: without tokens of an outlying norm; outlier_share, their
    share; l0, dead_share, threshold, … (math §2, §7)."""
    class_counts: Mapping[str, int]
    """Latents of each LatentClass."""
    histogram_edges: tuple[float, ...]
    """Edges of the bins of `Latent.histogram`, in scaled activation, ascending."""
    created_at: float
    """Seconds since 1970."""
    manifest_json: str = field(repr=False)
    broken: str = ""
    """Why the server cannot read it; empty for one that can be read. All figures of a broken one are 0 or empty."""
    skipped: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Texts that were left out of training and analysis, by data set and reason."""
    texts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """What became of the texts that were read, by data set: read, cut, cut_tokens, lost_behaviours, without_tokens,
    stopped, retries. Empty for versions that did not count them."""

    @property
    def left_out(self) -> list[str]:
        """Sentences about what training and analysis lost of the data; empty where they lost nothing."""
        return left_out(self.skipped, self.texts)

    @property
    def unavailable(self) -> Mapping[str, str]:
        """Why something was not measured, by its name: "logit_lens_chat", say."""
        return {} if self.broken else json.loads(self.manifest_json or "{}").get("unavailable", {})


@public
@dataclass(frozen=True)
class Detector:
    """The single latent that detects a tagged behaviour best."""

    behaviour: str
    place: str
    """"decision": last token of the assistant's header before it; "within": its own tokens."""
    latent: int
    threshold: float
    """Scaled activation above which the latent says yes."""
    recall: float
    false_rate: float
    num_positive: int
    num_negative: int


@public
@dataclass(frozen=True, eq=False)
class TrainingCurves:
    """Figures over training."""

    steps: "np.ndarray"
    """[step] int64."""
    curves: Mapping[str, "np.ndarray"]
    """Name to [step] float32, NaN where not measured."""
    version_id: str = ""
    """The version that they are of."""


@public
class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen."""
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


@public
@dataclass(frozen=True)
class JobInfo:
    """A job as it stood when it was asked for."""

    id: str
    kind: str
    name: str
    state: JobState
    queue_position: int
    """Jobs before it, 0 for the next one; only while queued."""
    after: tuple[str, ...]
    """Jobs that must succeed first."""
    stage: str
    fraction: float
    """Share of the stage that is done, 0 to 1."""
    message: str
    attempt: int
    created_at: float
    """Seconds since 1970, like the next two."""
    started_at: float
    """0 before."""
    ended_at: float
    """0 before."""
    metrics: Mapping[str, float]
    stage_seconds: Mapping[str, float]
    version_id: str
    recipe_yaml: str = field(repr=False)
    total_fraction: float = 0.0
    """Share of the whole job that is done, 0 to 1, estimated from its stages; never falls."""
    eta_s: float = 0.0
    """Estimated seconds until it ends, while it runs; 0 where not known."""


@public
@dataclass(frozen=True)
class PlanEntry:
    """Something that a job takes or makes, as far as it is known before it runs."""

    name: str
    value: float
    unit: str
    """"", "share", "tokens", "bytes" or "seconds"."""
    note: str
    """How it was found, or what it means; may be empty."""


@public
@dataclass(frozen=True)
class Plan:
    """A recipe that was checked: what it would take, and what is odd about it."""

    job: JobInfo
    """Without an id."""
    entries: tuple[PlanEntry, ...]
    warnings: tuple[str, ...]


@public
@dataclass(frozen=True)
class JobEvent:
    """Something that happened to a job."""

    id: str
    at: float
    """Seconds since 1970."""
    stage: str
    fraction: float
    message: str
    step: int
    metrics: Mapping[str, float]


@public
@dataclass(frozen=True)
class JobUpdate:
    """News of a job: how it stands now and what happened since the last update, which may be nothing."""

    job: JobInfo
    events: tuple[JobEvent, ...]
