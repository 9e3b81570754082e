"""Changes of a model's stream by latents, as arguments and as words.

Every value is checked when it is written down; the server has the limits.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from crosscope._errors import InvalidInput
from crosscope._prompts import check_count, check_flag, check_number, check_text
from crosscope._public import public
from crosscope_proto.roles import TokenRole
from crosscope_proto.v1 import effects_pb2 as pb

ModelName = Literal["base", "chat"]
"""One model of a pair."""
RowName = Literal["own", "other", "difference"]
"""A decoder row: that of the model that is changed, the other model's, or chat's less base's."""
ReachName = Literal["all", "prompt", "generated"]
"""A part of the text."""

MODELS: "dict[ModelName, pb.Model.ValueType]" = {"base": pb.MODEL_BASE, "chat": pb.MODEL_CHAT}
_WITH_AMOUNT: dict[str, pb.Action.ValueType] = {
    "add": pb.ACTION_ADD,
    "scale": pb.ACTION_SCALE,
    "set": pb.ACTION_SET,
}
_WITHOUT_AMOUNT: dict[str, pb.Action.ValueType] = {
    "ablate": pb.ACTION_ABLATE,
    "transplant": pb.ACTION_TRANSPLANT,
    "swap_stream": pb.ACTION_SWAP_STREAM,
}
ACTIONS = _WITH_AMOUNT | _WITHOUT_AMOUNT
_ROWS: dict[str, pb.DecoderRow.ValueType] = {
    "own": pb.DECODER_ROW_OWN,
    "other": pb.DECODER_ROW_OTHER,
    "difference": pb.DECODER_ROW_DIFFERENCE,
}
_REACHES: dict[str, pb.Reach.ValueType] = {
    "all": pb.REACH_UNSPECIFIED,
    "prompt": pb.REACH_PROMPT,
    "generated": pb.REACH_GENERATED,
}
_ROLES = {role.name.lower(): role for role in TokenRole}
_INCLUDE_LEFT_OUT = "include_left_out"
_NUMBERS = re.compile(r"\d+(:\d+)?(,\d+(:\d+)?)*")
SYNTAX = "LATENT[,LATENT…] ACTION [AMOUNT] [where]"
_MOST_POSITIONS = 4096


def check_model(model: object, field: str) -> ModelName:
    """The value if it is "base" or "chat"; raises InvalidInput."""
    return _choice(model, field, MODELS)  # pyright: ignore[reportReturnType]


def _choice(value: object, field: str, choices: Iterable[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise InvalidInput.of(field, f"must be one of {', '.join(map(repr, choices))}, but is {value!r}")
    return value


@public
@dataclass(frozen=True, kw_only=True)
class Steer:
    """One change of a model's residual stream by latents of a crosscoder; exactly one action.

        Steer(latent=7, add=4.0)
        Steer(latents=[7, 12], ablate=True, reach="generated")

    The same as words, for a command line or a URL: `Steer.parse("7,12 ablate generated")`; `str` writes them. Raises
    InvalidInput, which says what is wrong with which argument.
    """

    latent: int | None = field(default=None, compare=False)
    """The latent, if it was given alone."""
    latents: Sequence[int] = ()
    """All latents."""
    add: float | None = None
    """Adds this many times the latent's maximum in the analysis along its decoder row, whether or not it fires."""
    scale: float | None = None
    """Multiplies the latent's contribution: 0 takes it away, 1 changes nothing."""
    set: float | None = None
    """Makes the latent this many times its maximum."""
    ablate: bool = False
    """Takes the latent's contribution away."""
    transplant: bool = False
    """Exchanges the latent's contribution for the other model's."""
    swap_stream: bool = False
    """Exchanges the whole stream for the other model's; takes no latents."""
    row: RowName = "own"
    """Which decoder row is written; of add, scale, set and ablate."""
    reach: ReachName = "all"
    """Which part of the text is changed: "prompt", "generated", or "all"."""
    roles: Sequence[TokenRole | str] = ()
    """Only tokens with one of these roles, for instance "user"; empty: all."""
    positions: Sequence[int] = ()
    """Only these tokens of the text, counted from 0, those of the answer behind those of the prompt; empty: all."""
    include_left_out: bool = False
    """Also at tokens that training left out (BOS, attention sinks), where a latent's code means nothing."""

    def __post_init__(self) -> None:
        chosen = self._actions()
        if len(chosen) != 1:
            found = " and ".join(chosen) or "none"
            raise InvalidInput.of("steer", f"needs exactly one of {', '.join(ACTIONS)}, but has {found}")
        if self.action in _WITH_AMOUNT:
            check_number(getattr(self, self.action), self.action)
        self._check_latents()
        _choice(self.row, "row", _ROWS)
        if self.row != "own" and self.action in ("transplant", "swap_stream"):
            raise InvalidInput.of("row", f"{self.action} writes the other model's row already; leave row out")
        _choice(self.reach, "reach", _REACHES)
        check_flag(self.include_left_out, "include_left_out")
        object.__setattr__(self, "roles", tuple(_role(role) for role in as_sequence(self.roles, "roles")))
        positions = tuple(check_count(each, "positions") for each in as_sequence(self.positions, "positions"))
        object.__setattr__(self, "positions", positions)

    def _actions(self) -> list[str]:
        """The names of all actions that were given."""
        with_amount = [name for name in _WITH_AMOUNT if getattr(self, name) is not None]
        return with_amount + [name for name in _WITHOUT_AMOUNT if check_flag(getattr(self, name), name)]

    def _check_latents(self) -> None:
        given = tuple(as_sequence(self.latents, "latents"))
        if self.latent is not None:
            if given not in ((), (self.latent,)):
                raise InvalidInput.of("latents", "give latent=7 or latents=[7, 12], one of the two")
            given = (self.latent,)
        checked = tuple(check_count(each, "latents") for each in given)
        if self.swap_stream and checked:
            raise InvalidInput.of("latents", "swap_stream exchanges the whole stream; leave latents out")
        if not self.swap_stream and not checked:
            raise InvalidInput.of("latents", f"{self.action} needs a latent: latent=7 or latents=[7, 12]")
        if len(set(checked)) < len(checked):
            twice = next(each for each in checked if checked.count(each) > 1)
            raise InvalidInput.of("latents", f"latent {twice} is named twice")
        object.__setattr__(self, "latents", checked)

    @property
    def action(self) -> str:
        """The name of the one action: "add", "scale", "set", "ablate", "transplant" or "swap_stream"."""
        return self._actions()[0]

    @property
    def amount(self) -> float | None:
        """How much, for the actions that take an amount: times the latent's maximum, of `scale` a factor."""
        return float(getattr(self, self.action)) if self.action in _WITH_AMOUNT else None

    @classmethod
    def parse(cls, text: str) -> "Steer":
        """The change that words describe: latents, action, amount, then in any order where it acts.

        "7 add 4", "7,12 ablate generated", "7 set 1 difference user,assistant @3,8:12", "swap_stream prompt".
        """
        words = check_text(text, "steer").replace(", ", ",").split()
        fields: dict[str, Any] = {}
        if words and _NUMBERS.fullmatch(words[0]):
            fields["latents"] = _ranges(words.pop(0))
        action = words.pop(0) if words else ""
        if action not in ACTIONS:
            problem = f"{text!r} has {action!r} where one of {', '.join(ACTIONS)} belongs; write {SYNTAX}"
            raise InvalidInput.of("steer", f'{problem}, for instance "7 add 4" or "7,12 ablate generated"')
        if action in _WITH_AMOUNT and not words:
            raise InvalidInput.of("steer", f'{action} needs an amount, for instance "7 {action} 4"')
        fields[action] = check_number(words.pop(0), action) if action in _WITH_AMOUNT else True
        for word in words:
            name, value = _where(word, text)
            if name in fields:
                raise InvalidInput.of("steer", f"{text!r} says {name} twice")
            fields[name] = value
        return cls(**fields)

    def __str__(self) -> str:
        latents = ",".join(map(str, self.latents))
        amount = "" if self.amount is None else repr(self.amount).removesuffix(".0")
        row, reach = ("" if self.row == "own" else self.row), ("" if self.reach == "all" else self.reach)
        roles = ",".join(role.name.lower() for role in self.roles if isinstance(role, TokenRole))
        positions = "@" + ",".join(map(str, self.positions)) if self.positions else ""
        left_out = _INCLUDE_LEFT_OUT if self.include_left_out else ""
        return " ".join(filter(None, (latents, self.action, amount, row, reach, roles, positions, left_out)))

    __repr__ = __str__

    def message(self) -> pb.Intervention:
        """The message that asks for it."""
        return pb.Intervention(
            latents=self.latents,
            action=ACTIONS[self.action],
            amount=self.amount or 0.0,
            row=_ROWS[self.row] if self.row != "own" else pb.DECODER_ROW_UNSPECIFIED,
            reach=_REACHES[self.reach],
            roles=[int(role) for role in self.roles],  # pyright: ignore[reportArgumentType]
            positions=self.positions,
            include_left_out=self.include_left_out,
        )


def as_sequence(values: object, field: str) -> Sequence[Any]:
    """The values as a tuple; raises InvalidInput for a text, or for one value alone."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise InvalidInput.of(field, f"a list is needed, but {values!r} was given")
    return tuple(values)


def _role(role: object) -> TokenRole:
    if isinstance(role, TokenRole):
        return role
    if isinstance(role, str) and role.lower() in _ROLES:
        return _ROLES[role.lower()]
    raise InvalidInput.of("roles", f"{role!r} is no role; use {', '.join(_ROLES)}")


def _ranges(text: str) -> tuple[int, ...]:
    """The numbers that "3,8:12" stands for: 3, 8, 9, 10, 11."""
    found: list[int] = []
    for part in text.split(","):
        first, colon, end = part.partition(":")
        numbers = range(int(first), int(end) if colon else int(first) + 1)
        if not 0 < len(numbers) <= _MOST_POSITIONS:
            raise InvalidInput.of("steer", f"{part!r} is {len(numbers)} numbers; a range has 1 to {_MOST_POSITIONS}")
        found.extend(numbers)
    return tuple(found)


def _where(word: str, text: str) -> tuple[str, Any]:
    """The field that a word behind the action stands for, and its value."""
    if word in _ROWS:
        return "row", word
    if word in _REACHES:
        return "reach", word
    if word == _INCLUDE_LEFT_OUT:
        return word, True
    if word.startswith("@") and _NUMBERS.fullmatch(word[1:]):
        return "positions", _ranges(word[1:])
    if all(role in _ROLES for role in word.split(",")):
        return "roles", tuple(word.split(","))
    choices = f"a row ({', '.join(_ROWS)}), prompt or generated, roles ({', '.join(_ROLES)}), positions (@3,8:12)"
    raise InvalidInput.of("steer", f"{text!r}: {word!r} is none of {choices}, {_INCLUDE_LEFT_OUT}")


def steers(steer: object) -> tuple[Steer, ...]:
    """One change or several, as given to a call; texts are parsed."""
    each = (steer,) if isinstance(steer, Steer | str) else as_sequence(steer, "steer")
    found = tuple(Steer.parse(one) if isinstance(one, str) else one for one in each)
    if wrong := [one for one in found if not isinstance(one, Steer)]:
        raise InvalidInput.of("steer", f"a Steer is needed, but {wrong[0]!r} was given")
    return found
