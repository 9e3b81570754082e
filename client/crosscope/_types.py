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
    """A nearby latent, by the cosine of the two latents' decoder rows; each is the rows of both models in one."""

    latent: int
    cosine: float


@public
@dataclass(frozen=True)
class CoActive:
    """A latent that fires on the same tokens."""

    latent: int
    index: float
    """Tokens on which both fire, as a share of the tokens on which either fires (Jaccard index)."""


@public
@dataclass(frozen=True)
class Tokens:
    """The tokens of one text. Each list has an entry for each token, except that `left_out` may be empty."""

    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    roles: tuple[TokenRole, ...]
    left_out: tuple[LeftOut, ...] = ()
    """Why training left out tokens like each one, LeftOut.KEPT (0) if it did not; empty outside encoded prompts."""
    dropped_reasoning: tuple[int, ...] = ()
    """Indices of the messages whose reasoning the chat template does not print, or prints in part only."""

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
        """A token's role in words; behind it why training left out tokens like it, if it did."""
        role = self.roles[token].name.lower()
        reason = self.left_out[token] if self.left_out else LeftOut.KEPT
        return role if reason == LeftOut.KEPT else f"{role}, left out: {reason.name.lower()}"


@public
@dataclass(frozen=True)
class TokenCount:
    """How many tokens a prompt has."""

    num_tokens: int
    num_template: int
    """Those of them that the template adds: BOS, role headers, turn ends."""
    limit: int | None
    """Most tokens that the models are run on; None if the worker does not say."""

    @property
    def fits(self) -> bool:
        """Whether the models can be run on it, as far as is known."""
        return self.limit is None or self.num_tokens <= self.limit

    def __str__(self) -> str:
        of = "" if self.limit is None else f" of {self.limit}"
        return f"{self.num_tokens}{of} tokens, {self.num_template} of them the template's"


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
    """Figures by name (math §2, §7): l0, dead_share, threshold, … The most important are fve_base_inliers and
    fve_chat_inliers, which leave out tokens of an outlying norm; outlier_share is the share of these tokens."""
    class_counts: Mapping[str, int]
    """Latents of each LatentClass."""
    histogram_edges: tuple[float, ...]
    """Edges of the bins of `Latent.histogram`, in scaled activation, ascending."""
    created_at: float
    """Seconds since 1970."""
    manifest_json: str = field(repr=False)
    broken: str = ""
    """Why the server cannot read it; empty if it can. All figures of a broken crosscoder are 0 or empty."""
    skipped: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Texts that were left out of training and analysis, by data set and reason."""
    texts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """What became of the texts that were read, by data set: read, cut, cut_tokens, lost_behaviours, without_tokens,
    stopped, retries. Empty for versions that did not count them."""

    @property
    def left_out(self) -> list[str]:
        """Sentences about the data that training and analysis left out; empty if they left out nothing."""
        return left_out(self.skipped, self.texts)

    @property
    def unavailable(self) -> Mapping[str, str]:
        """Why a measurement is missing, by its name, for instance "logit_lens_chat"."""
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
    """Scaled activation above which the latent detects the behaviour."""
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
    """The version that was trained."""


@public
class JobState(StrEnum):
    """The state of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_over(self) -> bool:
        """Whether the job has ended."""
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


@public
@dataclass(frozen=True)
class JobInfo:
    """A job as it stood when the server was asked."""

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
    """0 before the start."""
    ended_at: float
    """0 before the end."""
    metrics: Mapping[str, float]
    stage_seconds: Mapping[str, float]
    version_id: str
    recipe_yaml: str = field(repr=False)
    total_fraction: float = 0.0
    """Share of the whole job that is done, 0 to 1, estimated from its stages; never falls."""
    eta_s: float = 0.0
    """Estimated seconds until it ends, while it runs; 0 if unknown."""
    owner: str = ""
    """Name of the token that submitted it; empty where callers have no names."""
    request_id: str = ""
    """Id of the call that submitted it, as the server's log has it; empty if unknown."""


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
    rel_norms: tuple[int, ...] = ()
    """Latents in bins of relative norm, of equal width from 0 to 1; empty where it was not measured."""


@public
@dataclass(frozen=True)
class JobUpdate:
    """News of a job: how it stands now, and its events since the last update, of which there may be none."""

    job: JobInfo
    events: tuple[JobEvent, ...]
