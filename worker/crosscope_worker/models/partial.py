"""A causal language model of which only a part is in memory: all but the decoder layers above one, and a head apart.

transformers reads from a model's files what its tree of modules has a place for. So a part is loaded by taking places
out of the tree before anything is read; what remains keeps its names, its configuration and its code. The rest comes
later as a second tree, which takes the weights that are there already from the first: none is in memory twice, and
whoever runs the first tree meanwhile sees no change. Does not know pairs, adapters or files.
"""

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel


class NotLoaded(RuntimeError):
    """A part of a model ran that is not in memory."""


class CannotCut(Exception):
    """A model of which no part can be loaded; the sentence says why."""


class Absent(nn.Module):
    """Stands where a part of a model was not loaded."""

    def forward(self, *_args: object, **_kwargs: object) -> None:
        """Raises NotLoaded."""
        raise NotLoaded("a part of a model ran that was not loaded; ask for the whole model")


def is_partial(model: nn.Module) -> bool:
    """Whether a part of the model was not loaded."""
    return any(isinstance(module, Absent) for module in model.modules())


def absent_names(model: nn.Module) -> list[str]:
    """Names of the modules that were not loaded."""
    return [name for name, module in model.named_modules() if isinstance(module, Absent)]


def above(model: PreTrainedModel, layers: nn.ModuleList, layer: int) -> list[str]:
    """Names of the modules of which the output of decoder layer `layer` needs nothing.

    They are the decoder layers above it, and the head unless it shares weights, with the embeddings mostly.
    """
    shared = {name for names in model.all_tied_weights_keys.items() for name in names}
    head = model.get_output_embeddings()
    modules = [*layers[layer + 1 :]]
    if isinstance(head, nn.Module) and not any(name in shared for name in _weights_below(model, head)):
        modules.append(head)
    wanted = {id(module) for module in modules}
    return [name for name, module in model.named_modules() if id(module) in wanted]


def cut(model: PreTrainedModel, absent: list[str], given: PreTrainedModel | None = None) -> None:
    """Takes the modules with the names `absent`, and all weights that `given` has, out of a model without weights.

    Raises CannotCut if weights would go with which others are tied.
    """
    gone = tuple(f"{name}." for name in absent)
    tied: dict[str, str] = model.all_tied_weights_keys
    for target, source in tied.items():
        if target.startswith(gone) != source.startswith(gone):
            raise CannotCut(f"{target} is tied to {source}, which lies in another part")
    for name in absent:
        model.set_submodule(name, Absent())
    if given is not None:
        for module, _ in _both_have(model, given):
            _hollow(module)
    there = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    model.all_tied_weights_keys = {target: tied[target] for target in tied if {target, tied[target]} <= there}
    model._keys_to_ignore_on_load_unexpected = {".*"}  # pyright: ignore[reportPrivateUsage]


def from_pretrained(
    model_class: type[PreTrainedModel], change: Callable[[PreTrainedModel], None], source: str, **settings: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model of a class, loaded after `change` has changed its tree of modules; and transformers' report.

    Raises as `change`, and as transformers' own `from_pretrained`.
    """

    def init(model: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(model, *args, **kwargs)
        change(model)

    own = {"__init__": init, "__module__": model_class.__module__, "__doc__": model_class.__doc__}
    changed_class = type(model_class.__name__, (model_class,), own)
    loaded: Any = changed_class.from_pretrained(source, output_loading_info=True, **settings)
    model, report = loaded
    model.__class__ = model_class
    return model, report


def adopt(model: nn.Module, given: nn.Module) -> None:
    """Lets `model` take all weights that `given` has, and the buffers of its modules with weights."""
    for module, other in _both_have(model, given):
        module._parameters.update(other._parameters)  # pyright: ignore[reportPrivateUsage]
        module._buffers.update(other._buffers)  # pyright: ignore[reportPrivateUsage]
    if isinstance(model, PreTrainedModel) and isinstance(given, PreTrainedModel):
        model.all_tied_weights_keys |= given.all_tied_weights_keys


def _both_have(model: nn.Module, given: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """Modules of the same name that have weights in `given`, of their own or below."""
    others = dict(given.named_modules(remove_duplicate=False))
    same = ((module, others.get(name)) for name, module in model.named_modules(remove_duplicate=False))
    return [(module, other) for module, other in same if other is not None and other.state_dict()]


def _hollow(module: nn.Module) -> None:
    """Leaves a module without weights and buffers, for others to come; transformers draws none in their place."""
    for tensors in (module._parameters, module._buffers):  # pyright: ignore[reportPrivateUsage]
        for name in tensors:
            tensors[name] = None
    module._is_hf_initialized = True  # pyright: ignore[reportArgumentType]


def _weights_below(model: nn.Module, module: nn.Module) -> Iterator[str]:
    own = {id(parameter) for parameter in module.parameters()}
    return (name for name, each in model.named_parameters(remove_duplicate=False) if id(each) in own)
