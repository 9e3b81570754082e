"""Decoder rows of a version, from its safetensors file, without torch: the header is JSON, the rest are the tensors.

Blocking. Knows nothing about what the rows mean.
"""

import json
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crosscope_proto.artefacts import WEIGHTS
from crosscope_server.errors import BrokenArtefact
from crosscope_server.tables import TableFolder

_MAX_HEADER_BYTES = 1 << 24
_TYPES: dict[str, Any] = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_ROWS = "W_dec"

Rows = NDArray[np.float32]


def decoder_rows(tables: TableFolder, num_latents: int, both: int) -> Rows:
    """[latent, both] float32: the decoder rows of a version. Raises BrokenArtefact, which names the file."""
    path = tables.checked(WEIGHTS)
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _MAX_HEADER_BYTES:
                raise ValueError(f"its header claims {length} bytes")
            found = json.loads(file.read(length))[_ROWS]
        kind, shape, (start, end) = found["dtype"], tuple(found["shape"]), found["data_offsets"]
        if kind not in _TYPES or shape != (num_latents, both):
            raise ValueError(f"{_ROWS} is {kind} {list(shape)}, not floats [{num_latents}, {both}]")
        values = np.memmap(path, _TYPES[kind], "r", 8 + length + start, shape)
        if values.nbytes != end - start:
            raise ValueError(f"{_ROWS} has {end - start} bytes, not {values.nbytes}")
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise BrokenArtefact(f"{path} cannot be read: {str(error)[:200]}; {tables.mend}") from error
    if kind == "BF16":  # the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)
