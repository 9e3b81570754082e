"""The Python SDK of crosscope: what did chat-tuning change inside a model?

    from crosscope import Client

    client = Client()
    crosscoder = client.crosscoder("demo")
    print(crosscoder.latents(where=["nu_err < 0.2"], order_by="-rel_norm", limit=20))

Talks to a server by gRPC and to nothing else: no torch, no files of the server. Names load when they are first used,
so that importing the package costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crosscope._client import Client
    from crosscope._crosscoder import Crosscoder
    from crosscope._encoding import Encoding, LatentActivation, TopLatent, TopLatents
    from crosscope._errors import (
        Busy,
        Conflict,
        CrosscopeError,
        DeadlineExceeded,
        FieldViolation,
        InvalidInput,
        JobCancelled,
        JobFailed,
        NotFound,
        ServerError,
        Unauthorized,
        Unavailable,
        VersionGone,
    )
    from crosscope._jobs import Job, Jobs
    from crosscope._latents import Example, ExampleList, Latent, LatentList
    from crosscope._transport import Tls
    from crosscope._types import (
        CoActive,
        CrosscoderInfo,
        Detector,
        Estimate,
        JobEvent,
        JobInfo,
        JobState,
        JobUpdate,
        LatentScaling,
        ModelEstimates,
        Neighbour,
        Plan,
        PlanEntry,
        Tokens,
        TrainingCurves,
    )
    from crosscope_proto.artefacts import ExampleGroup, LatentClass
    from crosscope_proto.roles import BASE, CHAT, LeftOut, TokenRole

__version__ = "0.1.0"

_MODULES = {
    "crosscope_proto.artefacts": ("ExampleGroup", "LatentClass"),
    "crosscope_proto.roles": ("BASE", "CHAT", "LeftOut", "TokenRole"),
    "crosscope._client": ("Client",),
    "crosscope._crosscoder": ("Crosscoder",),
    "crosscope._encoding": ("Encoding", "LatentActivation", "TopLatent", "TopLatents"),
    "crosscope._errors": (
        "Busy",
        "Conflict",
        "CrosscopeError",
        "DeadlineExceeded",
        "FieldViolation",
        "InvalidInput",
        "JobCancelled",
        "JobFailed",
        "NotFound",
        "ServerError",
        "Unauthorized",
        "Unavailable",
        "VersionGone",
    ),
    "crosscope._jobs": ("Job", "Jobs"),
    "crosscope._latents": ("Example", "ExampleList", "Latent", "LatentList"),
    "crosscope._transport": ("Tls",),
    "crosscope._types": (
        "CoActive",
        "CrosscoderInfo",
        "Detector",
        "Estimate",
        "JobEvent",
        "JobInfo",
        "JobState",
        "JobUpdate",
        "Plan",
        "PlanEntry",
        "LatentScaling",
        "ModelEstimates",
        "Neighbour",
        "Tokens",
        "TrainingCurves",
    ),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "BASE",
    "CHAT",
    "Busy",
    "Client",
    "CoActive",
    "Conflict",
    "Crosscoder",
    "CrosscoderInfo",
    "CrosscopeError",
    "DeadlineExceeded",
    "Detector",
    "Encoding",
    "Estimate",
    "Example",
    "ExampleGroup",
    "ExampleList",
    "FieldViolation",
    "InvalidInput",
    "Job",
    "JobCancelled",
    "JobEvent",
    "JobFailed",
    "JobInfo",
    "JobState",
    "JobUpdate",
    "Jobs",
    "Latent",
    "LatentActivation",
    "LatentClass",
    "LatentList",
    "LatentScaling",
    "LeftOut",
    "ModelEstimates",
    "Neighbour",
    "NotFound",
    "Plan",
    "PlanEntry",
    "ServerError",
    "Tls",
    "TokenRole",
    "Tokens",
    "TopLatent",
    "TopLatents",
    "TrainingCurves",
    "Unauthorized",
    "Unavailable",
    "VersionGone",
    "__version__",
]


def __getattr__(name: str) -> object:
    try:
        value: object = getattr(import_module(_HOMES[name]), name)
    except KeyError:
        raise AttributeError(f"module 'crosscope' has no attribute {name!r}") from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
