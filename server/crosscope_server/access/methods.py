"""Which role each public method asks for. The only such table."""

from typing import NamedTuple

from crosscope_server.callers import Role


class Rule(NamedTuple):
    """What a method asks of its caller."""

    role: Role
    changes: bool = False
    """Whether calls change something that others see, and so stand in the audit log."""


_READ, _RUN, _SUBMIT = Rule(Role.READ), Rule(Role.RUN), Rule(Role.SUBMIT)
_WORDS = Rule(Role.RUN, changes=True)
"""Labels, notes, stars and lists: whoever works with prompts writes down what they find. READ tokens may be handed to
an audience, and SUBMIT is about machine time."""
_JOBS = Rule(Role.SUBMIT, changes=True)
_UNKNOWN = Rule(Role.ADMIN)

RULES: dict[str, Rule] = {
    "/crosscope.v1.Latents/ListCrosscoders": _READ,
    "/crosscope.v1.Latents/GetCrosscoder": _READ,
    "/crosscope.v1.Latents/GetTrainingCurves": _READ,
    "/crosscope.v1.Latents/ListLatents": _READ,
    "/crosscope.v1.Latents/GetLatent": _READ,
    "/crosscope.v1.Latents/ListExamples": _READ,
    "/crosscope.v1.Latents/GetAtlas": _READ,
    "/crosscope.v1.Latents/MatchLatents": _READ,
    "/crosscope.v1.Latents/SearchLatents": _READ,
    "/crosscope.v1.Looks/ListLooks": _READ,
    "/crosscope.v1.Looks/GetLook": _READ,
    "/crosscope.v1.Annotations/GetAnnotation": _READ,
    "/crosscope.v1.Annotations/ListAnnotations": _READ,
    "/crosscope.v1.Annotations/GetNames": _READ,
    "/crosscope.v1.Annotations/GetHistory": _READ,
    "/crosscope.v1.Annotations/ListLists": _READ,
    "/crosscope.v1.Annotations/GetList": _READ,
    "/crosscope.v1.Annotations/ExportAnnotations": _READ,
    "/crosscope.v1.Annotations/SetLabel": _WORDS,
    "/crosscope.v1.Annotations/WriteNote": _WORDS,
    "/crosscope.v1.Annotations/SetStar": _WORDS,
    "/crosscope.v1.Annotations/CreateList": _WORDS,
    "/crosscope.v1.Annotations/RenameList": _WORDS,
    "/crosscope.v1.Annotations/DeleteList": _WORDS,
    "/crosscope.v1.Annotations/ChangeList": _WORDS,
    "/crosscope.v1.Annotations/ImportAnnotations": Rule(Role.ADMIN, changes=True),  # rows name their authors
    "/crosscope.v1.Prompts/Tokenize": _RUN,
    "/crosscope.v1.Prompts/Encode": _RUN,
    "/crosscope.v1.Prompts/TopLatents": _RUN,
    "/crosscope.v1.Prompts/EncodeStream": _RUN,
    "/crosscope.v1.Prompts/Compare": _RUN,
    "/crosscope.v1.Prompts/Generate": _RUN,
    "/crosscope.v1.Prompts/Attribute": _RUN,
    "/crosscope.v1.Prompts/Contrast": _RUN,
    "/crosscope.v1.Jobs/GetJob": _READ,
    "/crosscope.v1.Jobs/ListJobs": _READ,
    "/crosscope.v1.Jobs/WatchJob": _READ,
    "/crosscope.v1.Jobs/ReadJobLog": _READ,
    "/crosscope.v1.Jobs/GetRecipeSchema": _READ,
    "/crosscope.v1.Jobs/PlanJob": _SUBMIT,
    "/crosscope.v1.Jobs/SubmitJob": _JOBS,
    "/crosscope.v1.Jobs/CancelJob": _JOBS,
    "/crosscope.v1.Jobs/RetryJob": _JOBS,
    "/crosscope.v1.System/GetCapabilities": _READ,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _READ,
}
FREE = "/grpc.health.v1.Health/"
"""Methods that begin so are answered without a token."""


def rule_of(method: str) -> Rule:
    """The rule of a method. One that is not in the table is for admins."""
    return RULES.get(method, _UNKNOWN)
