"""The arms of a generation: ways to continue one prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crosscope._errors import InvalidInput
from crosscope._prompts import check_count, check_number, check_text, check_whole
from crosscope._public import public
from crosscope._steering import MODELS, ModelName, Steer, as_sequence, check_model, steers
from crosscope_proto.v1 import effects_pb2 as pb

SETTINGS = ("temperature", "top_p", "seed", "max_new_tokens", "stop", "num_samples")
"""Settings of an arm that the call gives where the arm has none."""


@public
@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to continue a prompt. A setting of None is that of the call."""

    model: ModelName = "chat"
    steer: Steer | Sequence[Steer] = ()
    """Changes of its stream; none: the model as it is."""
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    max_new_tokens: int | None = None
    stop: str | Sequence[str] | None = None
    num_samples: int | None = None
    name: str = ""
    """What results call it; by default its model and its changes."""

    def __post_init__(self) -> None:
        check_model(self.model, "model")
        object.__setattr__(self, "steer", steers(self.steer))
        if not self.name:
            changes = "; ".join(map(str, self.steer))  # pyright: ignore[reportArgumentType]
            object.__setattr__(self, "name", f"{self.model}, {changes}" if changes else self.model)

    def message(self, call: Mapping[str, Any]) -> pb.Arm:
        """The message that asks for it; `call` are the settings of the call by name."""
        own = {name: getattr(self, name) for name in SETTINGS}
        settings = {name: call[name] if own[name] is None else own[name] for name in SETTINGS}
        sampling = pb.Sampling(
            temperature=check_number(settings["temperature"], "temperature"),
            seed=check_seed(settings["seed"]),
            max_new_tokens=check_count(settings["max_new_tokens"], "max_new_tokens", low=1),
            num_samples=check_count(settings["num_samples"], "num_samples", low=1),
            stop=_stops(settings["stop"]),
        )
        if settings["top_p"] is not None:
            sampling.top_p = check_number(settings["top_p"], "top_p")
        changes = [each.message() for each in steers(self.steer)]
        return pb.Arm(model=MODELS[self.model], interventions=changes, sampling=sampling)


def check_seed(seed: object) -> int:
    """The value if it is a seed that fits the wire; raises InvalidInput."""
    number = check_whole(seed, "seed")
    if not 0 <= number < 2**64:
        raise InvalidInput.of("seed", f"must be 0 to 2^64 - 1, but is {seed!r}")
    return number


def _stops(stop: object) -> list[str]:
    texts = [stop] if isinstance(stop, str) else as_sequence(stop, "stop")
    if any(text == "" for text in texts):
        raise InvalidInput.of("stop", "a stop string is empty; give at least one character")
    return [check_text(text, "stop") for text in texts]


def arms_of(arms: Sequence[Arm] | None, model: ModelName, steer: Steer | Sequence[Steer]) -> tuple[Arm, ...]:
    """The arms of a call: those given, or the one that its model and changes describe."""
    if arms is None:
        return (Arm(model=model, steer=steer),)
    given = tuple(as_sequence([arms] if isinstance(arms, Arm) else arms, "arms"))
    if model != "chat" or steers(steer):
        raise InvalidInput.of("arms", "an arm has its own model and steer; give them there, not beside arms")
    if not given:
        raise InvalidInput.of("arms", "is empty; give at least one Arm")
    if wrong := [arm for arm in given if not isinstance(arm, Arm)]:
        raise InvalidInput.of("arms", f"an Arm is needed, but {wrong[0]!r} was given")
    return given
