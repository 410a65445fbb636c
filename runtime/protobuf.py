"""Protocol buffers on the wire, as far as ONNX files take.

https://protobuf.dev/programming-guides/encoding/
"""

from collections.abc import Iterator

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
_SIZES = {FIXED64: 8, FIXED32: 4}


class DamagedError(ValueError):
    """Bytes that are no message."""


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value of each field: an integer for varints, else the bytes.

    Raises:
        DamagedError: if `message` is cut off or is no message.
    """
    for number, value, _ in _walk(message):
        yield number, value


def raw_fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield the number of each field and all bytes of it, which together are the message.

    Raises:
        DamagedError: if `message` is cut off or is no message.
    """
    for number, _, whole in _walk(message):
        yield number, whole


def _walk(message: memoryview) -> Iterator[tuple[int, int | memoryview, memoryview]]:
    at = 0
    while at < len(message):
        start = at
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, at = _varint(message, at)
            yield number, value, message[start:at]
            continue
        if kind == LENGTH:
            size, at = _varint(message, at)
        elif kind in _SIZES:
            size = _SIZES[kind]
        else:
            raise DamagedError(f"a field has the wire type {kind}")
        if at + size > len(message):
            raise DamagedError("a field ends beyond its message")
        yield number, message[at : at + size], message[start : at + size]
        at += size


def varints(packed: int | memoryview) -> Iterator[int]:
    """The integers of a repeated field, which comes packed or one by one."""
    if isinstance(packed, int):
        yield packed
        return
    at = 0
    while at < len(packed):
        value, at = _varint(packed, at)
        yield value


def text(value: int | memoryview) -> str:
    """A string field; what is no UTF-8 is replaced."""
    return "" if isinstance(value, int) else bytes(value).decode("utf-8", "replace")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message) and shift < 64:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise DamagedError("a number ends beyond its message")


def field(number: int, value: int | bytes | str) -> bytes:
    """One field of a message: a number that is not negative, a text, or bytes of any kind."""
    if isinstance(value, int):
        return _written(number << 3 | VARINT) + _written(value)
    content = value.encode() if isinstance(value, str) else value
    return _written(number << 3 | LENGTH) + _written(len(content)) + content


def _written(value: int) -> bytes:
    """A varint: 7 bits a byte, the lowest first."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])
