"""Tries a model on a few tokens before anything is trained on it, and finds how its texts may share a forward.

A model without a residual stream that is read from left to right is refused; the message names its class and the
reason. Does not know texts.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from crosscope_worker.models.pair import decoder, decoder_layers, num_embeddings
from crosscope_worker.models.partial import NotLoaded, is_partial
from crosscope_worker.models.placement import first_device
from crosscope_worker.models.places import PairError
from crosscope_worker.models.residual import NotReached, in_float32, layer_outputs, stream
from crosscope_worker.precision import float32_products
from crosscope_worker.work import is_out_of_memory

TOLERANCE = 1e-3
"""Largest `standardised_error` of a float32 computation that is repeated in another batch."""
ROUNDED_TOLERANCE = 0.05
"""The same in half precision."""
_NUM_TOKENS = 12
_LATE = 4096
"""Positions up to which late tokens are tried: RoPE's angles are rounded most there."""
_MANY_IDS = 1 << 12
_SEED = 20_25


def probe_ids(models: Sequence[PreTrainedModel], rows: int = 1, pos: int = _NUM_TOKENS) -> Tensor:
    """Ids that all the models read, [row, pos] int64 on the first one's device: random ones, none of them special."""
    special = {id_ for model in models for id_ in _special_ids(model.config.to_dict())}
    readable = min(_MANY_IDS, *(num_embeddings(model) for model in models))
    usual = [id_ for id_ in range(readable) if id_ not in special]
    chosen = torch.randint(len(usual), (rows, pos), generator=torch.Generator().manual_seed(_SEED))
    return torch.tensor(usual)[chosen].to(first_device(models[0]))


def _special_ids(config: dict[Any, object]) -> set[int]:
    found: set[int] = set()
    for key, value in config.items():
        if isinstance(value, dict):
            found |= _special_ids(value)
        elif str(key).endswith(("_token_id", "_token_index")):
            found |= {each for each in (value if isinstance(value, list) else [value]) if isinstance(each, int)}
    return found


def standardised_error(found: Tensor, expected: Tensor) -> float:
    """How much `found` differs from `expected`, both [..., d]: the root mean square over d, of the worst token.

    Each difference is divided by its dimension's spread over the tokens (the median absolute deviation), so a dimension
    with massive values hides no other. The divisor is at least 1e-3 of the value, which stands for its rounding.
    Infinite if the difference is not finite.
    """
    found, expected = found.flatten(0, -2).double(), expected.flatten(0, -2).double()
    spread = (expected - expected.median(dim=0).values).abs().median(dim=0).values
    floor = (1e-3 * spread.median()).clamp_min(1e-12)
    divisor = torch.maximum(torch.maximum(spread, floor), 1e-3 * expected.abs())
    error = float(((found - expected) / divisor).square().mean(dim=-1).sqrt().max())
    return error if error == error else float("inf")


@torch.inference_mode()
def rounding_error(read: Callable[[Tensor], Tensor], ids: Tensor, expected: Tensor) -> float:
    """The `standardised_error` of an equal computation in another batch: what rounding alone comes to.

    expected: what `read` gives for ids, [row, pos]. Reads half of the rows, or one row twice.
    """
    rows = max(1, len(ids) // 2)
    again = read(ids[:rows] if len(ids) > 1 else ids.expand(2, -1).contiguous())[:rows]
    return standardised_error(again, expected[:rows])


@torch.inference_mode()
def mixing_of_texts(model: PreTrainedModel, layer: int) -> str:
    """Why texts of one row cannot be kept apart by their positions, as what "the model" does; empty where they can.

    Tried in float32. A recurrent state, say, goes on from one text to the next. A model that raises because it takes
    no `position_ids` cannot either; every other error passes.
    """
    ids = probe_ids([model])
    halves = ids.split(_NUM_TOKENS // 2, dim=1)
    positions = [torch.arange(half.shape[1], device=ids.device)[None] for half in halves]
    with in_float32(model, layer):
        try:
            alone = [_read(model, layer, *each) for each in zip(halves, positions, strict=True)]
            together = _read(model, layer, ids, torch.cat(positions, dim=1))
        except (TypeError, ValueError) as error:
            if "position_ids" in str(error):
                return "takes no positions"
            raise
    error = standardised_error(together, torch.cat(alone, dim=1))
    if error <= TOLERANCE:
        return ""
    change = f"{error:.2g} of their spread in float32, more than {TOLERANCE:g}"
    return f"mixes texts of one row: activations change by {change}"


def long_text_limits(model: PreTrainedModel) -> tuple[int, ...]:
    """Numbers of tokens above which the model rotates all positions of a forward by other angles (LongRoPE).

    Texts on both sides of a limit must not share a forward. transformers' "dynamic" scaling needs no limit here: it
    begins beyond `Pair.max_positions`, to which texts are cut.
    """
    rotary = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    kinds = [rotary, *(each for each in rotary.values() if isinstance(each, dict))]
    limits = {each.get("original_max_position_embeddings") for each in kinds if each.get("rope_type") == "longrope"}
    return tuple(sorted(limit for limit in limits if limit))


@torch.inference_mode()
def depends_on_longer_texts(model: PreTrainedModel, layer: int) -> bool:
    """Whether a short text's activations change in a forward with the end of the longest readable text."""
    config = model.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None)
    if not getattr(config, "rope_parameters", None) or longest is None or longest < 2 * _NUM_TOKENS:
        return False
    ids = probe_ids([model], rows=2)
    short = torch.arange(_NUM_TOKENS, device=ids.device).expand(2, -1)
    beside = torch.stack([short[0], short[1] + longest - _NUM_TOKENS])
    with in_float32(model, layer):
        try:
            alone, together = (_read(model, layer, ids, positions)[0] for positions in (short, beside))
        except (TypeError, ValueError) as error:
            if "position_ids" in str(error):
                return False
            raise
    return standardised_error(together, alone) > TOLERANCE


@torch.inference_mode()
def moved_by_tf32(model: PreTrainedModel, layer: int) -> float:
    """The `standardised_error` of a few late tokens where float32 products are made as TF32; 0 if nothing changes.

    Some versions of transformers make RoPE's angles by such a product, whatever the model's data type: TF32 then
    rounds positions above 2 048 to even numbers.
    """
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None) or _NUM_TOKENS
    ids = probe_ids([model])
    positions = torch.arange(ids.shape[1], device=ids.device)[None] + max(0, min(longest, _LATE) - ids.shape[1])
    found = []
    for how in ("ieee", "tf32"):
        with float32_products(how):
            try:
                found.append(_read(model, layer, ids, positions))
            except (TypeError, ValueError) as error:
                if "position_ids" not in str(error):
                    raise
                found.append(_read(model, layer, ids))
    return standardised_error(found[1], found[0])


@torch.inference_mode()
def check_model(model: PreTrainedModel, layer: int, named: str) -> None:
    """Raises PairError unless the output of `layer` is the model's one residual stream, read from left to right.

    `named` says which model it is. Runs the whole model once on a few tokens. Where memory runs out, torch's own error
    passes.
    """
    named = f"{named}, {type(model).__name__},"
    ids = probe_ids([model])
    try:
        x = _read(model, layer, ids)
        expected = (*ids.shape, model.config.get_text_config().hidden_size)
        if x.shape != expected:
            raise PairError(
                f"{named} has no single residual stream: layer {layer} gives {_shape(x)} where {list(expected)} is read"
            )
        _check_causal(model, layer, ids, named)
        _check_hidden_state(model, layer, ids, x, named)
    except PairError:
        raise
    except NotReached as error:
        raise PairError(
            f"{named} does not run layer {layer} for texts (it may be for images only); choose another layer"
        ) from error
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise PairError(f"{named} cannot be run on token ids alone as a decoder: {reason}") from error


def _check_causal(model: PreTrainedModel, layer: int, ids: Tensor, named: str) -> None:
    middle = ids.shape[1] // 2
    other = torch.cat([ids[:, :middle], ids[:, middle:].flip(1)], dim=1)
    with in_float32(model, layer):
        before, after = (_read(model, layer, each)[:, :middle] for each in (ids, other))
    error = standardised_error(after.nan_to_num(), before.nan_to_num())
    if error > TOLERANCE:
        raise PairError(
            f"{named} reads texts in both directions: other tokens at a text's end change the activations before them "
            f"(by {error:.2g} of their spread); use a decoder-only model"
        )


def _check_hidden_state(model: PreTrainedModel, layer: int, ids: Tensor, x: Tensor, named: str) -> None:
    """Compares with transformers' own hidden states, except at the last layer, where they come after the final norm.

    Most models list the embeddings first, some (Mamba, RWKV) the first layer's output.
    """
    if is_partial(model):
        _check_handed_on(model, layer, ids, x, named)
        return
    ran: list[int] = []
    hooks = [
        each.register_forward_hook(lambda *_, index=index: ran.append(index))
        for index, each in enumerate(decoder_layers(model))
    ]
    try:
        states = model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
    finally:
        for hook in hooks:
            hook.remove()
    if states is None or layer == ran[-1]:
        return
    if len(states) != len(ran) + 1 or ran != sorted(set(ran)):
        raise PairError(f"{named} runs {len(ran)} layers and gives {len(states)} hidden states, not {len(ran) + 1}")
    near = [state.to(x.device) for state in states[ran.index(layer) :][:2] if state.shape == x.shape]
    error = min((standardised_error(x.nan_to_num(), state.nan_to_num()) for state in near), default=float("inf"))
    if error > ROUNDED_TOLERANCE:
        raise PairError(
            f"{named} does not hand the output of layer {layer} on as it is: its own hidden state there differs "
            f"(by {error:.2g} of the spread), so there is no single residual stream"
        )


def _check_handed_on(model: PreTrainedModel, layer: int, ids: Tensor, x: Tensor, named: str) -> None:
    """Compares with what the next layer gets, where the layers above are not loaded."""
    found: list[Any] = []

    def keep(_module: nn.Module, inputs: tuple[Any, ...], named_inputs: dict[str, Any]) -> None:
        found.append(inputs[0] if inputs else named_inputs.get("hidden_states"))

    above = decoder_layers(model)[layer + 1 :]
    hooks = [each.register_forward_pre_hook(keep, with_kwargs=True) for each in above]
    try:
        with suppress(NotLoaded):
            decoder(model)(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    given = next((each for each in found if isinstance(each, Tensor) and each.shape == x.shape), None)
    given = None if given is None else given.to(x.device)
    if above and (given is None or standardised_error(x.nan_to_num(), given.nan_to_num()) > ROUNDED_TOLERANCE):
        raise PairError(
            f"{named} does not hand the output of layer {layer} on as it is: the next layer gets something else, so "
            "there is no single residual stream"
        )


def _read(model: PreTrainedModel, layer: int, ids: Tensor, positions: Tensor | None = None) -> Tensor:
    return stream(layer_outputs(model, [layer], ids, positions)[0]).to(ids.device)


def _shape(x: Tensor) -> list[int]:
    return list(x.shape)
