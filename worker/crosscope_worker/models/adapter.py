"""A model with a LoRA adapter (PEFT); it shares its weights' memory with the model without the adapter.

That model stays as it is. The adapter goes into a second tree of modules around the same parameters, so nothing has to
be switched on and off. PEFT alone knows what rank, scaling or DoRA mean. Does not know the pair's other model.
"""

import copy
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel

from crosscope_proto.artefacts import PairManifest
from crosscope_worker.models.partial import absent_names
from crosscope_worker.models.places import PairError, Place
from crosscope_worker.work import is_out_of_memory

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
"""What PEFT puts in front of the names of a model's parameters."""


def with_adapter(model: PreTrainedModel, place: Place, manifest: PairManifest) -> PreTrainedModel:
    """`model` with the adapter at `place`; `model` itself stays without, and both share its parameters.

    With `adapter_merged`, the adapter is added into copies of the weights that it changes. What it has for parts of the
    model that are not loaded is left out.
    Raises PairError for an adapter that is missing, is of another kind than LoRA, or does not fit the model. Where
    memory runs out, torch's own error passes.
    """
    named = f"pair {manifest.name!r}: the adapter {place}"
    folder = _folder(place, named)
    config = _read_config(folder, named)
    _check_kind(config, manifest, named)
    stored = _stored_keys(folder, named)
    try:
        import peft
    except ImportError as error:
        raise PairError(f"{named} needs PEFT; install it with: pip install './worker[peft]'") from error
    try:
        twin = _twin(model, _replaced(model, stored, config.get("modules_to_save") or ()))
        adapted = peft.PeftModel.from_pretrained(twin, str(folder), config=_peft_config(folder, model, stored))
        _check_keys(set(peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)), stored, model, named)
        chat = _merged(adapted) if manifest.adapter_merged else adapted.get_base_model()
    except PairError:
        raise
    except Exception as error:  # PEFT has no errors of its own.
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:300]
        raise PairError(
            f"{named} does not fit {type(model).__name__} {manifest.chat}: {reason}; name the model that it was made "
            "for as pair.chat.base"
        ) from error
    assert isinstance(chat, PreTrainedModel)
    return chat.eval().requires_grad_(False)


def _folder(place: Place, named: str) -> Path:
    if Path(place.source).is_absolute():
        folder = Path(place.source)
        if not folder.is_dir():
            raise PairError(f"{named}: the folder does not exist")
    else:
        try:
            folder = Path(snapshot_download(place.source, revision=place.revision, allow_patterns=[CONFIG, WEIGHTS]))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise PairError(f"{named}: the hub gave no adapter: {' '.join(str(error).split())[:300]}") from error
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).exists():
            raise PairError(f"{named}: there is no {name}; save it with save_pretrained, which writes safetensors")
    return folder


def _read_config(folder: Path, named: str) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PairError(f"{named}: {CONFIG} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise PairError(f"{named}: {CONFIG} does not hold a JSON object")
    return config


def _check_kind(config: dict[str, Any], manifest: PairManifest, named: str) -> None:
    if (kind := config.get("peft_type")) != "LORA":
        raise PairError(f"{named} is of type {kind}; only LoRA adapters (DoRA and rsLoRA among them) can be read")
    if config.get("alora_invocation_tokens"):
        raise PairError(f"{named} acts only after certain tokens (aLoRA), which cannot be read here")
    made_for = str(config.get("base_model_name_or_path") or "")
    is_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", made_for) and not Path(made_for).is_absolute()
    known = not Path(manifest.chat).is_absolute()
    if is_hub_id and known and not manifest.adapter_base_given and _last(made_for) != _last(manifest.chat):
        raise PairError(
            f"{named} was made for {made_for}, and the pair's base is {manifest.chat}; set pair.chat.base to the model "
            "that the adapter belongs to"
        )


def _last(hub_id: str) -> str:
    return hub_id.rpartition("/")[2].lower()


def _stored_keys(folder: Path, named: str) -> set[str]:
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            return set(file.keys())
    except (SafetensorError, OSError) as error:
        raise PairError(f"{named}: {WEIGHTS} is damaged or cut short ({error}); save it again") from error


def _loaded(stored: set[str], model: PreTrainedModel) -> set[str]:
    """The keys of the adapter's file without those for parts of the model that are not loaded."""
    absent = tuple(f"{name}." for name in absent_names(model))
    return {key for key in stored if not _below(key).startswith(absent)}


def _peft_config(folder: Path, model: PreTrainedModel, stored: set[str]) -> "PeftConfig":
    """The adapter's configuration; without its targets if they lie in parts of the model that are not loaded."""
    from peft import PeftConfig
    from peft.utils.constants import DUMMY_TARGET_MODULES

    config = PeftConfig.from_pretrained(str(folder))
    targets, loaded = ({key for key in keys if ".lora_" in key} for keys in (stored, _loaded(stored, model)))
    if targets and not loaded:
        config.target_modules = DUMMY_TARGET_MODULES  # pyright: ignore[reportAttributeAccessIssue]
    return config


def _replaced(model: PreTrainedModel, stored: Iterable[str], modules_to_save: Sequence[str]) -> set[str]:
    """Names of the model's own parameters (embeddings, say) for which the adapter's file holds other values.

    Modules to save are not among them, for PEFT puts those beside the model's own.
    """
    names = {_below(key) for key in stored}
    beside = {name for name in names if name.rpartition(".")[0].rpartition(".")[2] in modules_to_save}
    return (names - beside) & {name for name, _ in model.named_parameters(remove_duplicate=False)}


def _below(key: str) -> str:
    """The name that the parameter under a key of PEFT has in the model without an adapter."""
    return key.removeprefix(_PREFIX).replace(".base_layer.", ".")


def _twin(model: PreTrainedModel, replaced: set[str]) -> PreTrainedModel:
    """A second tree of the same modules around the same parameters and buffers; those in `replaced` are copied."""
    own = {id(tensor) for name, tensor in model.named_parameters(remove_duplicate=False) if name in replaced}
    tensors = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors if id(tensor) not in own})


def _check_keys(used: set[str], stored: set[str], model: PreTrainedModel, named: str) -> None:
    """Raises PairError where PEFT has left out weights of the file, or made up some that the file lacks."""
    own = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    stored = _loaded(stored, model)
    if unused := sorted(key for key in stored - used if _below(key) not in own):
        raise PairError(
            f"{named} has {len(unused)} weights for which the model has no place, the first {unused[0]!r}; name the "
            "model that it was made for as pair.chat.base"
        )
    if missing := sorted(key for key in used - stored if not key.endswith(".base_layer.weight")):
        raise PairError(f"{named} lacks {len(missing)} weights, the first {missing[0]!r}")


def _merged(adapted: "PeftModel") -> nn.Module:
    """The adapter added into copies of the weights that it changes, so that the model below keeps its own."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in adapted.modules():
        if isinstance(module, BaseTunerLayer):
            below = module.get_base_layer()
            for name, parameter in list(below.named_parameters(recurse=False)):
                setattr(below, name, nn.Parameter(parameter.detach().clone(), requires_grad=False))
    return adapted.merge_and_unload(safe_merge=True)  # pyright: ignore[reportCallIssue]
