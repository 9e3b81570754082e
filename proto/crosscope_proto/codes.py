"""Sparse codes to and from protobuf as whole arrays.

All fields of SparseCode are packed arrays of four-byte numbers, so on the wire each is a tag, a length and the bytes
that it has in memory. Going there by Python's lists would cost a Python object for every number. Knows no array
library: arrays come and go as little-endian bytes.
"""

from crosscope_proto.v1 import types_pb2

_FIELDS = ("row_starts", "latents", "activations")
_NUMBERS = tuple(types_pb2.SparseCode.DESCRIPTOR.fields_by_name[name].number for name in _FIELDS)
_LENGTH_DELIMITED = 2


def sparse_code(row_starts: bytes, latents: bytes, activations: bytes) -> types_pb2.SparseCode:
    """The message of three arrays: uint32, uint32 and float32, little-endian."""
    parts: list[bytes] = []
    for number, data in zip(_NUMBERS, (row_starts, latents, activations), strict=True):
        parts += (bytes([number << 3 | _LENGTH_DELIMITED]), _varint(len(data)), data)
    return types_pb2.SparseCode.FromString(b"".join(parts))


def sparse_code_arrays(code: types_pb2.SparseCode) -> tuple[bytes, bytes, bytes]:
    """The three arrays of a message, as `sparse_code` takes them."""
    data = code.SerializeToString()
    found = dict.fromkeys(_NUMBERS, b"")
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        assert tag & 7 == _LENGTH_DELIMITED, "a field of SparseCode is no packed array"
        size, at = _read_varint(data, at)
        found[tag >> 3] = data[at : at + size]
        at += size
    row_starts, latents, activations = (found[number] for number in _NUMBERS)
    return row_starts, latents, activations


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
