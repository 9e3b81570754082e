"""Results from reply messages, which no module but this and `_decode_effects` reads field by field.

Knows nothing about channels.
"""

import json
from typing import Any

import crosscope._types as types
from crosscope._encoding import Encoding, Rank, TopLatent, TopLatents
from crosscope._examples import Example
from crosscope._matches import LatentMatches, MatchCount, MatchedSide
from crosscope_proto.artefacts import ExampleGroup, LatentClass
from crosscope_proto.columns import NAN
from crosscope_proto.roles import LeftOut, TokenRole
from crosscope_proto.v1 import jobs_pb2, latents_pb2, prompts_pb2, types_pb2
from crosscope_proto.verdict import Judgement, SpecificTo, Verdict

_CLASSES = {
    latents_pb2.LATENT_CLASS_CHAT_ONLY: LatentClass.CHAT_ONLY,
    latents_pb2.LATENT_CLASS_BASE_ONLY: LatentClass.BASE_ONLY,
    latents_pb2.LATENT_CLASS_SHARED: LatentClass.SHARED,
    latents_pb2.LATENT_CLASS_OTHER: LatentClass.OTHER,
    latents_pb2.LATENT_CLASS_DEAD: LatentClass.DEAD,
}
_VERDICTS = dict(enumerate(Verdict, 1))
_SPECIFIC_TO = dict(enumerate(SpecificTo, 1))
_NO_VERDICT = "the server gave no verdict: its software is older than this client's"
_STATES = {
    jobs_pb2.JOB_STATE_QUEUED: types.JobState.QUEUED,
    jobs_pb2.JOB_STATE_RUNNING: types.JobState.RUNNING,
    jobs_pb2.JOB_STATE_SUCCEEDED: types.JobState.SUCCEEDED,
    jobs_pb2.JOB_STATE_FAILED: types.JobState.FAILED,
    jobs_pb2.JOB_STATE_CANCELLED: types.JobState.CANCELLED,
}


_CLASS_ORDER = [str(each) for each in LatentClass]


def _class_rank(name: str) -> tuple[int, str]:
    """The order in which classes are shown. A map on the wire has none; unknown names come last."""
    return (_CLASS_ORDER.index(name) if name in _CLASS_ORDER else len(_CLASS_ORDER), name)


def crosscoder_info(message: latents_pb2.Crosscoder) -> types.CrosscoderInfo:
    """A crosscoder's card."""
    return types.CrosscoderInfo(
        name=message.name,
        version_id=message.version_id,
        pair=message.pair,
        base_model=message.base_model,
        chat_model=message.chat_model,
        layer=message.layer,
        variant=message.variant,
        num_latents=message.num_latents,
        d_model=tuple(message.d_model),
        datasets=tuple(message.datasets),
        analysis_tokens=message.analysis_tokens,
        training_tokens=message.training_tokens,
        metrics=dict(message.metrics),
        class_counts={name: message.class_counts[name] for name in sorted(message.class_counts, key=_class_rank)},
        histogram_edges=tuple(message.histogram_edges),
        created_at=message.created_at,
        manifest_json=message.manifest_json,
        broken=message.broken,
        **_losses(message.manifest_json),
    )


def _losses(manifest_json: str) -> dict[str, Any]:
    """The counts of texts in a manifest; manifests of older versions and of other programs may lack them."""
    try:
        manifest = json.loads(manifest_json or "{}")
    except (ValueError, RecursionError):  # of a broken crosscoder
        return {}
    if not isinstance(manifest, dict):
        return {}
    found = {name: manifest.get(name) for name in ("skipped", "texts")}
    return {name: counts for name, counts in found.items() if _are_counts(counts)}


def _are_counts(value: object) -> bool:
    """Whether it is a mapping of mappings of integers."""
    if not isinstance(value, dict):
        return False
    return all(isinstance(each, dict) and all(isinstance(n, int) for n in each.values()) for each in value.values())


def latent_matches(message: latents_pb2.MatchLatentsResponse) -> LatentMatches:
    """How the latents of two crosscoders correspond."""
    return LatentMatches(_side(message.first), _side(message.second), message.min_cosine)


def _side(message: latents_pb2.MatchedSide) -> MatchedSide:
    import numpy as np

    return MatchedSide(
        crosscoder=message.crosscoder,
        version_id=message.version_id,
        latents=np.array(message.latents, np.int64),
        nearest=np.array(message.nearest, np.int64),
        cosines=np.array(message.cosines, np.float32),
        mutual=np.array(message.is_mutual, bool),
        counts=tuple(
            MatchCount(each.column, each.value, each.num, each.num_matched, each.num_alone, each.mean_cosine)
            for each in message.counts
        ),
        num_dead=message.num_dead,
    )


def detector(message: latents_pb2.BehaviourDetector) -> types.Detector:
    """A behaviour's best latent."""
    return types.Detector(
        behaviour=message.behaviour,
        place=message.place,
        latent=message.latent,
        threshold=message.threshold,
        recall=message.recall,
        false_rate=message.false_rate,
        num_positive=message.num_positive,
        num_negative=message.num_negative,
    )


def training_curves(message: latents_pb2.GetTrainingCurvesResponse) -> types.TrainingCurves:
    """Figures over training."""
    import numpy as np  # here, because it takes a third of the package's import

    return types.TrainingCurves(
        steps=np.array(message.steps, dtype=np.int64),
        curves={curve.name: np.array(curve.values, dtype=np.float32) for curve in message.curves},
        version_id=message.version_id,
    )


def _estimate(message: latents_pb2.Estimate) -> types.Estimate:
    return types.Estimate(message.value, message.se)


def _both(message: latents_pb2.ModelEstimates) -> types.ModelEstimates:
    return types.ModelEstimates(_estimate(message.base), _estimate(message.chat))


def _scaling(message: latents_pb2.LatentScaling) -> types.LatentScaling:
    return types.LatentScaling(
        activation=_both(message.activation),
        activation_no_bias=_both(message.activation_no_bias),
        reconstruction=_both(message.reconstruction),
        error=_both(message.error),
        nu_err=_estimate(message.nu_err),
        nu_rec=_estimate(message.nu_rec),
    )


def _optional(message: latents_pb2.Latent, field: str) -> float | None:
    return getattr(message, field) if message.HasField(field) else None  # pyright: ignore[reportArgumentType]


def _judgement(message: latents_pb2.Judgement) -> Judgement:
    verdict, specific_to = _VERDICTS.get(message.verdict), _SPECIFIC_TO.get(message.specific_to)
    if verdict is None:
        return Judgement(Verdict.NOT_JUDGED, specific_to, tuple(message.reasons) or (_NO_VERDICT,))
    return Judgement(verdict, specific_to, tuple(message.reasons))


def latent_fields(message: latents_pb2.Latent) -> dict[str, Any]:
    """One latent's statistics, by the names of the fields of LatentStatistics."""
    return {
        "id": message.id,
        "latent_class": _CLASSES.get(message.latent_class, LatentClass.OTHER),
        "part": message.part,
        "norm_base": message.norm_base,
        "norm_chat": message.norm_chat,
        "rel_norm": message.rel_norm,
        "cosine": message.cosine,
        "num_active": message.num_active,
        "frequency": _estimate(message.frequency),
        "mean": _estimate(message.mean),
        "max": message.max,
        "chat_direction": _scaling(message.chat_direction),
        "base_direction": _scaling(message.base_direction),
        "beta_ratio": _estimate(message.beta_ratio) if message.HasField("beta_ratio") else types.Estimate(NAN, NAN),
        "base_uselessness": _optional(message, "base_uselessness"),
        "base_uselessness_ls": _optional(message, "base_uselessness_ls"),
        "base_uselessness_single": _optional(message, "base_uselessness_single"),
        "role_shares": tuple(message.role_shares),
        "dataset_shares": tuple(message.dataset_shares),
        "template_share": message.template_share,
        "repeat_share": _optional(message, "repeat_share"),
        "histogram": tuple(message.histogram),
        "top_tokens": tuple(message.top_tokens),
        "logit_tokens_base": tuple(message.logit_tokens_base),
        "logit_tokens_chat": tuple(message.logit_tokens_chat),
        "neighbours": tuple(types.Neighbour(n.latent, n.cosine) for n in message.neighbours),
        "coactive": tuple(types.CoActive(other.latent, other.index) for other in message.coactive),
        "more": dict(message.more),
        "verdict": _judgement(message.verdict),
        "peak_context": tuple(message.peak_context) if any(message.peak_context) else (),
        "label": message.label,
        "is_starred": message.is_starred,
    }


_ROLES = {role.value: role for role in TokenRole}
_LEFT_OUT = {reason.value: reason for reason in LeftOut}


def role(number: int) -> TokenRole:
    """A token's role; one that this version does not know counts as plain text."""
    return _ROLES.get(number, TokenRole.TEXT)


def left_out_by(number: int) -> LeftOut:
    """Why training left a token out; a reason that this version does not know counts as LeftOut.NORM."""
    return _LEFT_OUT.get(number, LeftOut.NORM)


def tokens(message: types_pb2.Tokens) -> types.Tokens:
    """A text's tokens."""
    roles = tuple(_ROLES.get(number, TokenRole.TEXT) for number in message.roles)
    left_out = tuple(_LEFT_OUT.get(number, LeftOut.NORM) for number in message.left_out)
    dropped = tuple(message.dropped_reasoning)
    return types.Tokens(tuple(message.ids), tuple(message.pieces), roles, left_out, dropped)


def token_count(message: prompts_pb2.TokenizeResponse) -> types.TokenCount:
    """How many tokens a prompt has."""
    found = tokens(message.tokens)
    return types.TokenCount(len(found), sum(found.is_template), message.max_prompt_tokens or None)


_GROUPS = {
    latents_pb2.EXAMPLE_GROUP_QUANTILE: ExampleGroup.QUANTILE,
    latents_pb2.EXAMPLE_GROUP_SILENT: ExampleGroup.SILENT,
}


def example(message: latents_pb2.Example) -> Example:
    """One text on which a latent fires, or stays silent."""
    return Example(
        sequence_id=message.sequence_id,
        dataset=message.dataset,
        group=_GROUPS.get(message.group, ExampleGroup.TOP),
        quantile=message.quantile,
        rank=message.rank,
        tokens=tokens(message.tokens),
        token_start=message.token_start,
        num_tokens=message.num_tokens,
        positions=tuple(message.positions),
        activations=tuple(message.activations),
        max=message.max,
        peak=message.peak,
        repeats=message.repeats,
        group_low=message.group_low,
        group_high=message.group_high,
        group_texts=message.group_texts,
    )


def encoding(message: prompts_pb2.EncodeResponse, crosscoder: str) -> Encoding:
    """A prompt's sparse codes."""
    import numpy as np

    code = message.code
    return Encoding(
        crosscoder=crosscoder,
        version_id=message.version_id,
        tokens=tokens(message.tokens),
        row_starts=np.asarray(code.row_starts, np.int64),
        latents=np.asarray(code.latents, np.int64),
        activations=np.asarray(code.activations, np.float32),
        cached=message.cached,
        compute_ms=message.compute_ms,
    )


def top_latents(message: prompts_pb2.TopLatentsResponse, crosscoder: str, rank: Rank) -> TopLatents:
    """A prompt's latents, ranked."""
    return TopLatents(
        crosscoder=crosscoder,
        version_id=message.version_id,
        rank=rank,
        entries=tuple(
            TopLatent(entry.latent, entry.score, entry.max, entry.sum, entry.count, entry.peak_token)
            for entry in message.entries
        ),
        tokens=tokens(message.tokens),
        num_latents=message.num_latents,
        cached=message.cached,
        num_left_out=message.num_left_out,
        num_filtered=message.num_filtered,
        notes=tuple(message.notes),
    )


def job(message: jobs_pb2.Job) -> types.JobInfo:
    """A job as it stands."""
    return types.JobInfo(
        id=message.id,
        kind=message.kind,
        name=message.name,
        state=_STATES.get(message.state, types.JobState.QUEUED),
        queue_position=message.queue_position,
        after=tuple(message.after),
        stage=message.stage,
        fraction=message.fraction,
        message=message.message,
        attempt=message.attempt,
        created_at=message.created_at,
        started_at=message.started_at,
        ended_at=message.ended_at,
        metrics=dict(message.metrics),
        stage_seconds=dict(message.stage_seconds),
        version_id=message.version_id,
        recipe_yaml=message.recipe_yaml,
        total_fraction=message.total_fraction,
        eta_s=message.eta_s,
        owner=message.owner,
        request_id=message.request_id,
    )


def job_event(message: jobs_pb2.JobEvent) -> types.JobEvent:
    """Something that happened to a job."""
    return types.JobEvent(
        id=message.id,
        at=message.at,
        stage=message.stage,
        fraction=message.fraction,
        message=message.message,
        step=message.step,
        metrics=dict(message.metrics),
        rel_norms=tuple(message.rel_norms),
    )
