"""The memory that a training takes at its peak, term by term, from its recipe alone.

A step's peak is counted in four sizes: the two weight matrices, a code of the batch, a batch of inputs, and constants.
How many of each it holds depends on the dictionary, on the data type of products and on the device;
tests/worker/training/test_memory_peaks.py counts what the code allocates and compares. Dead latents, which an auxiliary
loss revives, take more while there are many. Pure functions of sizes: reads no file and asks no device.
"""

import math
from typing import NamedTuple

from crosscope_proto.dictionaries import DictionarySpec
from crosscope_proto.specs import TrainingSpec

SAMPLE_TOKENS = 32_768
"""Most tokens that thresholds are calibrated on, `4 · both` bytes each. A sample that was just thinned has half."""
SAMPLE = "the threshold's sample, tokens:"
"""Key of the sample's bytes in `needed`. No field of the recipe changes its size; some variants have no sample."""
ON_THE_WAY = "activations on their way and work space, tokens:"
"""Key of the activations that are made for the buffer, the models' forward and work space. No field changes them."""
COPY = "a checkpoint's copy, copies:"
"""Key of the copy from which a checkpoint is written. It is not taken where there is no room for it."""
WINDOW_TOKENS = 65_536
"""Tokens that both models read before the buffer gets them."""
FORWARD_TOKENS = 8192
"""Tokens of one forward."""
WINDOWS = {"cpu": 3, "cuda": 5}
"""Windows at a time: one that is being joined from its forwards, which takes two, what is left of one in the buffer,
and on CUDA those made ahead."""
_FORWARD_BYTES = 80
"""Bytes of a forward, for each token and each number of a model's width. 65 to 80 were measured on Gemma 2 2B."""
_LIBRARIES = {"cpu": 4 << 20, "cuda": 100 << 20}
"""Work space of matrix products on CUDA; pieces of gradients on a CPU."""
_PIECE_ENTRIES = 1 << 23
_BYTES_A_PIECE_ENTRY = 22
"""Of a batch in which nothing says which entries are large (`batch_topk`)."""
_BYTES_AN_ACTIVE = 200
"""Of an active entry of a code: its token, latent and value, in two orders, and the candidates for its place."""
_BYTES_A_LATENT = 60


class _Held(NamedTuple):
    """What a step holds at its peak, besides weights and Adam's two moments in float32."""

    matrices: float
    """Times encoder and decoder in float32: gradients, copies in bfloat16 (each a half)."""
    codes: float
    """Times `[batch, latent]` float32: the encoder's product, masks, and dense codes with their gradients."""
    inputs: float
    """Times `[batch, width]` float32: inputs, errors and their gradients."""


_HELD: dict[tuple[str, str], dict[str, _Held]] = {
    ("cpu", "float32"): {
        "batch_topk": _Held(1.0, 1.25, 5.1),
        "delta": _Held(1.0, 2.2, 3.2),
        "topk": _Held(1.0, 5.3, 2.8),
        "l1": _Held(1.0, 5.3, 3.2),
        "jumprelu": _Held(1.0, 4.6, 3.2),
        "matryoshka": _Held(1.0, 1.1, 8.9),
    },
    ("cpu", "bfloat16"): {
        "batch_topk": _Held(2.0, 2.3, 5.3),
        "delta": _Held(2.0, 2.9, 3.7),
        "topk": _Held(2.0, 6.2, 1.0),
        "l1": _Held(3.75, 5.95, 3.8),
        "jumprelu": _Held(4.0, 5.45, 2.0),
        "matryoshka": _Held(1.8, 2.05, 9.3),
    },
    ("cuda", "float32"): {
        "batch_topk": _Held(0.0, 1.2, 5.8),
        "delta": _Held(0.0, 2.2, 3.0),
        "topk": _Held(0.0, 5.3, 1.1),
        "l1": _Held(1.0, 5.3, 3.1),
        "jumprelu": _Held(1.0, 4.6, 3.1),
        "matryoshka": _Held(1.0, 1.1, 8.8),
    },
    ("cuda", "bfloat16"): {
        "batch_topk": _Held(0.5, 1.2, 6.9),
        "delta": _Held(0.5, 2.2, 3.6),
        "topk": _Held(0.5, 5.3, 1.6),
        "l1": _Held(1.5, 5.3, 3.5),
        "jumprelu": _Held(1.5, 4.6, 3.6),
        "matryoshka": _Held(1.5, 1.1, 9.3),
    },
}
"""By device and data type of products. l1 and jumprelu start with half of the code active, which is dense."""
LIKE = {"dfc": "batch_topk", "diff_sae": "batch_topk", "designated_shared": "l1"}
"""Dictionaries whose steps hold what another one's do."""
_DECOUPLED = {"float32": 2.5, "bfloat16": 3.0}
"""`matrices` of a code with entries of its own for each model: gradients of each, and one of both."""


def needed(
    spec: DictionarySpec, training: TrainingSpec, d_model: tuple[int, int], device: str = "cuda", num_devices: int = 1
) -> dict[str, int]:
    """Bytes of memory on each of the devices that train together, by the field of the recipe that they grow with.

    `device` is torch's name of the kind. A device holds its share of the latents and of the streams, and the whole of
    each batch. The models' weights are not counted; their forward is.
    """
    device = device if device == "cuda" else "cpu"
    both, width, batch = sum(d_model), spec.width(*d_model), training.batch_size
    latents = -(-spec.num_latents // num_devices)
    num_streams, held_streams = streams_of(training, num_devices)
    matrices, code, inputs = 8 * latents * width, 4 * batch * latents, 4 * batch * width
    held = _HELD[device, training.dtype][LIKE.get(spec.variant, spec.variant)]
    if spec.code_normalisation == "decoupled":
        held = held._replace(matrices=_DECOUPLED[training.dtype])
    piece = _BYTES_A_PIECE_ENTRY * min(batch * latents, _PIECE_ENTRIES)
    of_inputs = max(held.inputs * inputs, piece * (getattr(spec, "k", None) is not None)) + 2 * 4 * batch * both
    windows = held_streams * WINDOWS[device] * WINDOW_TOKENS
    buffer_tokens = -(-_buffer_tokens(training) * held_streams // num_streams)
    parts = {SAMPLE: 4 * SAMPLE_TOKENS * both} if spec.calibrates else {}
    parts |= {
        "crosscoder.num_latents": round((3 + held.matrices) * matrices) + _BYTES_A_LATENT * latents,
        "training.batch_size": round(held.codes * code + of_inputs) + _BYTES_AN_ACTIVE * batch * getattr(spec, "k", 0),
        "training.buffer_tokens": 4 * buffer_tokens * both,
        ON_THE_WAY: 4 * windows * both + _FORWARD_BYTES * FORWARD_TOKENS * max(d_model) + _LIBRARIES[device],
    }
    state = _state_bytes(latents, width, buffer_tokens + held_streams * WINDOW_TOKENS, both)
    return parts | {COPY: state + parts.get(SAMPLE, 0)}


def streams_of(training: TrainingSpec, num_devices: int) -> tuple[int, int]:
    """Number of streams of a training that starts on so many devices, and how many a device has at most."""
    num_streams = training.streams or num_devices
    return num_streams, -(-num_streams // num_devices)


def values_of(spec: DictionarySpec, training: TrainingSpec) -> dict[str, int]:
    """The values of the fields in `needed`, as the training uses them."""
    return {
        SAMPLE: SAMPLE_TOKENS,
        "crosscoder.num_latents": spec.num_latents,
        "training.batch_size": training.batch_size,
        "training.buffer_tokens": _buffer_tokens(training),
        ON_THE_WAY: WINDOW_TOKENS,
        COPY: 1,
    }


def _buffer_tokens(training: TrainingSpec) -> int:
    """At least two batches (buffer.py)."""
    return max(training.buffer_tokens, 2 * training.batch_size)


def checkpoint_bytes(
    spec: DictionarySpec,
    training: TrainingSpec,
    d_model: tuple[int, int],
    num_devices: int = 1,
    all_tokens: float = math.inf,
) -> int:
    """Size of a checkpoint at most: weights, Adam's two moments, the buffers with what waits for them, and the sample.

    There are no more than `all_tokens` tokens in all epochs.

    It has the same size on any number of devices; only that of the first start counts, by its number of streams.
    """
    both, width = sum(d_model), spec.width(*d_model)
    num_streams, _ = streams_of(training, num_devices)
    sample = 4 * round(min(SAMPLE_TOKENS, all_tokens)) * both if spec.calibrates else 0
    held = round(min(_buffer_tokens(training) + num_streams * WINDOW_TOKENS, all_tokens))
    return _state_bytes(spec.num_latents, width, held, both) + sample


def _state_bytes(num_latents: int, width: int, num_tokens: int, both: int) -> int:
    """Bytes of what a checkpoint holds of so many latents, and of so many tokens of activations."""
    return 3 * weights_bytes(num_latents, width) + 8 * num_latents + 4 * num_tokens * both


def weights_bytes(num_latents: int, width: int) -> int:
    """A dictionary's weights in float32: encoder, decoder, and both biases."""
    return 4 * (2 * num_latents * width + num_latents + width)
