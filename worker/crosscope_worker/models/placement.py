"""Where the two models of a pair lie: on one device, on a device each, or with their layers on several.

A model whose layers lie on several devices, or elsewhere than its callers' tensors, takes inputs from any device: hooks
send what each layer is given to the layer's own. What a layer, or the model, returns stays where it was made; callers
bring it to where they want it. Does not know pairs, files or crosscoders.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from crosscope_proto.roles import MODEL_NAMES
from crosscope_worker.models.places import PairError

BETWEEN_MODELS, BETWEEN_DEVICES, AUTO = ",", "+", "auto"


class PlacementError(PairError):
    """Devices that are not there, or words that name none; the sentence names those that are."""


@dataclass(frozen=True)
class Placement:
    """The devices of each model. The dictionary lies on the chat model's first, and so does what callers get."""

    base: tuple[torch.device, ...]
    """One; or several, among which the layers are divided, lowest first."""
    chat: tuple[torch.device, ...]

    @classmethod
    def of(cls, said: "str | torch.device | Placement") -> "Placement":
        """What the words mean: a device for both models; or two with a comma between them, the base model's first;
        `+` stands between the devices that share a model's layers; `auto` is all GPUs, or the CPU without one.

        Raises PlacementError.
        """
        if isinstance(said, Placement):
            return said
        if (said := str(said)).strip() == AUTO:
            return _everywhere()
        parts = said.split(BETWEEN_MODELS)
        if len(parts) > len(MODEL_NAMES):
            raise PlacementError(
                f"{said!r} names devices for {len(parts)} models, but a pair has two: name one device, or the base "
                "model's and the chat model's with a comma between them; + stands between devices that share a model"
            )
        models = [tuple(map(_device, part.split(BETWEEN_DEVICES))) for part in parts]
        for devices in models:
            if len(set(devices)) < len(devices):
                raise PlacementError(f"{said!r} names a device twice for one model; name each once")
        return cls(models[0], models[-1])

    @property
    def home(self) -> torch.device:
        """Where the dictionary lies and results come together."""
        return self.chat[0]

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """All of them, each once, base first."""
        return tuple(dict.fromkeys((*self.base, *self.chat)))

    @property
    def together(self) -> Self:
        """The same for models that share weights: both where the chat model is."""
        return type(self)(self.chat, self.chat)

    def __str__(self) -> str:
        names = [BETWEEN_DEVICES.join(map(str, devices)) for devices in (self.base, self.chat)]
        return names[0] if self.base == self.chat else BETWEEN_MODELS.join(names)


def devices_there() -> list[str]:
    """Names of the devices of this machine, for messages."""
    return ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]


def _device(name: str) -> torch.device:
    name = name.strip()
    there = devices_there()
    if name == "cuda" and len(there) > 1:
        return torch.device("cuda:0")
    if name in there:
        return torch.device(name)
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError):
        raise PlacementError(f"{name!r} is no device; there are: {', '.join(there)}") from None
    if device.type in ("cpu", "cuda", "meta"):  # meta holds no values
        raise PlacementError(f"there is no device {name!r}; there are: {', '.join(there)}")
    return device  # Other kinds of accelerators are torch's to judge.


def _everywhere() -> Placement:
    """A half of the GPUs for each model; of an odd number, both have the one in the middle."""
    gpus = tuple(map(torch.device, devices_there()[1:])) or (torch.device("cpu"),)
    half = (len(gpus) + 1) // 2
    return Placement(gpus[:half], gpus[-half:])


def division(sizes: Sequence[int], beside: int, devices: Sequence[torch.device]) -> list[torch.device]:
    """The device of each layer: equal shares of all bytes, in the layers' order.

    sizes: bytes of each layer; `beside`: bytes of all else, embeddings and head above all, which lie on the first.
    """
    share = (beside + sum(sizes)) / len(devices)
    ends = accumulate(sizes, initial=beside)
    middles = [end + size / 2 for end, size in zip(ends, sizes, strict=False)]
    last = len(devices) - 1
    return [devices[min(last, int(middle / share)) if share else 0] for middle in middles]


def put(
    model: PreTrainedModel,
    decoder: nn.Module,
    layers: Sequence[nn.Module],
    places: Sequence[torch.device],
    first: torch.device,
    home: torch.device,
) -> None:
    """Moves a model: each of its decoder layers to its place, all else to `first`; and sets its hooks.

    `decoder` is the module that is called with token ids; `home` is where callers' tensors lie. Sets no hook on a model
    that lies at home as a whole. Callers of a model elsewhere read `first_device`.
    """
    inside = {id(module) for layer in layers for module in layer.modules()}
    for module in model.modules():
        if id(module) not in inside:
            module._apply(lambda tensor: tensor.to(first), recurse=False)  # pyright: ignore[reportPrivateUsage]
    for layer, place in zip(layers, places, strict=True):
        layer.to(place)
    if {first, *places} == {home}:
        return
    decoder.register_forward_pre_hook(_sending(first), with_kwargs=True)
    if {first, *places} == {first}:
        return
    for layer, place in zip(layers, places, strict=True):
        layer.register_forward_pre_hook(_sending(place), with_kwargs=True)
    layers[-1].register_forward_hook(lambda _module, _inputs, output: moved(output, first))


def first_device(model: PreTrainedModel) -> torch.device:
    """Where a model's embeddings lie, and its head: what is put into its middle goes there first."""
    return next(model.get_input_embeddings().parameters()).device


def _sending(device: torch.device) -> Callable[..., tuple[Any, Any]]:
    def send(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return moved(args, device), moved(kwargs, device)

    return send


def moved(value: Any, device: torch.device) -> Any:
    """A nested value with its tensors on a device. A cache stays: each layer has its own part of it."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: moved(each, device) for key, each in value.items()}
    if type(value) in (tuple, list):
        return type(value)(moved(each, device) for each in value)
    return value
