"""Writes a safetensors file piece by piece, so that neither a copy on the host nor Python's lock is held for long.

The format is that of the library, which reads the file. Its own writer takes all tensors of a device to the host first.
Knows nothing about what the tensors mean.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

PIECE_BYTES = 64 << 20
"""Bytes that are copied and written at a time."""
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes tensors, of any device, to a file. Raises OSError."""
    # Wide numbers first: then every tensor begins at a multiple of its number's size.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    header: dict[str, object] = {}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    staging = _Staging()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in ordered:
            for piece in staging.pieces(tensor):
                file.write(piece)


class _Staging:
    """Memory on the host through which a device's tensors pass, a piece at a time."""

    def __init__(self) -> None:
        self._pinned: Tensor | None = None

    def pieces(self, tensor: Tensor) -> Iterator[memoryview]:
        """The bytes of a tensor; each piece is valid until the next."""
        for piece in tensor.contiguous().reshape(-1).view(torch.uint8).split(PIECE_BYTES):
            yield self._on_host(piece).numpy().data

    def _on_host(self, piece: Tensor) -> Tensor:
        if not piece.is_cuda:
            return piece
        if self._pinned is None:
            self._pinned = torch.empty(PIECE_BYTES, dtype=torch.uint8, pin_memory=True)
        held = self._pinned[: len(piece)].copy_(piece, non_blocking=True)
        torch.cuda.current_stream(piece.device).synchronize()
        return held
