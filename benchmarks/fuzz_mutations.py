"""Mutations for `fuzz.py`: of bytes, zip archives, pickles, safetensors, JSON and ONNX graphs.

Each takes what a file holds and a source of random choices, and returns what it shall hold
instead with a few words on the change.
"""

import copy
import io
import json
import pickletools
import struct
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

Changed = tuple[bytes, str]

INTEGERS = (0, 1, -1, 2, 7, 255, 2**31 - 1, 2**31, 2**32, 2**40, 2**63 - 1, -(2**63), 2**64, 10**30)
FLOATS = (0.0, -1.0, 1e-300, 1e300, float("inf"), float("nan"))
STRINGS = (
    *("", "x", "..", "../model.onnx.data", "/etc/passwd", "/dev/zero", "manifest.json"),
    *("C:\\x", "a\0b", "é\u202e\x1b[31m", "x" * 5000, "input_ids", "logits", "time", "batch"),
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    [],
    {},
    [[]],
    [0],
    {"x": 1},
    *INTEGERS,
    0.5,
    1e300,
    *STRINGS,
)
CANARY = "canary"  # the folder that planted code makes

PLANTS: dict[str, bytes] = {  # opcodes that run os.mkdir(CANARY) where a reader lets them
    "GLOBAL REDUCE": b"cos\nmkdir\nX\x06\0\0\0canary\x85R0",
    "STACK_GLOBAL REDUCE": b"X\x02\0\0\0osX\x05\0\0\0mkdir\x93X\x06\0\0\0canary\x85R0",
    "INST": b"(X\x06\0\0\0canaryios\nmkdir\n0",
    "OBJ": b"(cos\nmkdir\nX\x06\0\0\0canaryo0",
    "NEWOBJ": b"cos\nmkdir\nX\x06\0\0\0canary\x85\x810",
    "eval": b"cbuiltins\neval\nX\x20\0\0\0__import__('os').mkdir('canary')\x85R0",
    "system": b"cposix\nsystem\nX\x0c\0\0\0mkdir canary\x85R0",
    "getattr": b"cbuiltins\ngetattr\ncos\nsystem\nX\x08\0\0\0__call__\x86R"
    b"X\x0c\0\0\0mkdir canary\x85R0",
}


def flip_bytes(data: bytes, random: Random) -> Changed:
    """Change, cut, double, insert or blank some bytes anywhere."""
    at = random.randrange(max(1, len(data)))
    size = random.choice((1, 2, 8, 64, 1000))
    pieces: dict[str, Callable[[], bytes]] = {
        "flip": lambda: data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :],
        "cut off": lambda: data[:at],
        "cut out": lambda: data[:at] + data[at + size :],
        "double": lambda: data[: at + size] + data[at:],
        "insert": lambda: data[:at] + random.randbytes(size) + data[at:],
        "blank": lambda: data[:at] + bytes(size) + data[at + size :],
        "number": lambda: _patched(data, at, random),
    }
    name = random.choice(list(pieces))
    return (pieces[name]() if data else b"x"), f"{name} {size} bytes at {at}"


def _patched(data: bytes, at: int, random: Random) -> bytes:
    """Overwrite an integer of 2, 4 or 8 bytes."""
    width = random.choice((2, 4, 8))
    value = random.choice(INTEGERS) % (1 << 8 * width)
    return data[:at] + value.to_bytes(width, "little") + data[at + width :]


def change_zip(data: bytes, random: Random) -> Changed:
    """Change a member or the structure of an archive, or what its records say of it."""
    if random.random() < 0.4:
        return _lie(data, random)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    at = random.randrange(len(members))
    name, content = members[at]
    method = zipfile.ZIP_STORED
    pickles = [i for i, (member, _) in enumerate(members) if member.endswith("data.pkl")]
    ways = ("drop", "double", "rename", "bytes", "deflate", "swap", "grow")
    what = random.choice((*ways, "pickle") if pickles else ways)
    if what == "drop":
        del members[at]
    elif what == "double":
        members.append((name, flip_bytes(content, random)[0]))
    elif what == "rename":
        members[at] = (random.choice(("../x", "/x", "", "archive/data.pkl", name + "x")), content)
    elif what == "bytes":
        members[at] = (name, flip_bytes(content, random)[0])
    elif what == "pickle":
        at = pickles[0]
        changed, what = change_pickle(members[at][1], random)
        members[at] = (members[at][0], changed)
    elif what == "deflate":
        method = zipfile.ZIP_DEFLATED
    elif what == "swap":
        other = random.randrange(len(members))
        members[at], members[other] = (name, members[other][1]), (members[other][0], content)
    else:
        method = zipfile.ZIP_DEFLATED
        members[at] = (name, bytes(50_000_000))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for member, body in members:
            archive.writestr(zipfile.ZipInfo(member), body, method)
    return out.getvalue(), f"zip: {what} {members[min(at, len(members) - 1)][0] if members else ''}"


def _lie(data: bytes, random: Random) -> Changed:
    """Overwrite one field of one record of an archive."""
    marks = {b"PK\x01\x02": 46, b"PK\x03\x04": 30, b"PK\x05\x06": 22, b"PK\x06\x06": 56}
    mark = random.choice([mark for mark in marks if mark in data])
    places = [at for at in range(len(data)) if data.startswith(mark, at)]
    at = random.choice(places) + 2 * random.randrange(2, marks[mark] // 2)
    return _patched(data, at, random), f"zip: field at {at} of a record {mark!r}"


def change_pickle(data: bytes, random: Random) -> Changed:
    """Change the opcodes of a pickle, or plant code in it."""
    try:
        starts = [position for _, _, position in pickletools.genops(data) if position is not None]
    except ValueError:
        return flip_bytes(data, random)
    ends = [*starts[1:], starts[-1] + 1]
    ops = [data[a:b] for a, b in zip(starts, ends, strict=True)]
    rest = data[ends[-1] :]  # other pickles and the storages of the legacy container
    at = random.randrange(1, len(ops))
    what = random.choice(("drop", "double", "swap", "number", "string", "plant", "plant"))
    if what == "drop":
        del ops[at]
    elif what == "double":
        ops.insert(at, ops[at])
    elif what == "swap":
        ops[at - 1], ops[at] = ops[at], ops[at - 1]
    elif what == "plant":
        what = random.choice(list(PLANTS))
        ops.insert(at, PLANTS[what])
    elif what == "number":
        at = random.choice([i for i, op in enumerate(ops) if op[:1] in b"KMJ\x8a"] or [at])
        value = random.choice(INTEGERS).to_bytes(16, "little", signed=True)
        ops[at] = b"\x8a\x10" + value
    else:
        at = random.choice([i for i, op in enumerate(ops) if op[:1] in b"X\x8cc"] or [at])
        text = random.choice((*STRINGS, "9", "FloatStorage")).encode("utf-8", "replace")
        ops[at] = b"X" + struct.pack("<I", len(text)) + text
    return b"".join(ops) + rest, f"pickle: {what} at opcode {at}"


def change_safetensors(data: bytes, random: Random) -> Changed:
    """Change the header of a safetensors file: its length, its names, shapes and offsets."""
    if random.random() < 0.2:
        return random.choice(INTEGERS).to_bytes(16, "little", signed=True)[:8] + data[8:], "length"
    size = int.from_bytes(data[:8], "little")
    header, what = change_json(data[8 : 8 + size], random)
    return len(header).to_bytes(8, "little") + header + data[8 + size :], f"safetensors: {what}"


def change_json(data: bytes, random: Random) -> Changed:
    """Change one value or key of a JSON text, or its form."""
    shape = random.random()
    if shape < 0.05:
        return b"[" * 100_000, "a list within a list, and so on"
    if shape < 0.1:
        return data[:-1].rstrip() + b"," + data.strip()[1:], "every key twice"
    tree = json.loads(data)
    places = list(_places(tree))
    holder, key = random.choice(places)
    what = random.choice(("value", "value", "value", "drop", "copy", "key"))
    if what == "drop":
        del holder[key]
    elif what == "copy":
        holder[key] = copy.deepcopy(random.choice(places)[0])
    elif what == "key" and isinstance(holder, dict):
        holder[random.choice(STRINGS)] = holder.pop(key)
    else:
        holder[key] = _other(holder[key], random)
    return json.dumps(tree).encode("utf-8", "replace"), f"json: {what} of {key!r}"


def _places(tree: Any) -> Any:
    """Every container of a JSON tree with each of its keys."""
    for key in range(len(tree)) if isinstance(tree, list) else list(tree):
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from _places(tree[key])


def _other(value: Any, random: Random) -> Any:
    """Half the time a value of the same type, so that it gets past the check of types."""
    same = [x for x in VALUES if type(x) is type(value)]
    return random.choice(same if same and random.random() < 0.5 else VALUES)


def change_graph(data: bytes, random: Random) -> Changed:
    """Change one field anywhere in an ONNX graph; one in ten times, bytes of the file."""
    if random.random() < 0.1:
        return flip_bytes(data, random)
    model = onnx.ModelProto.FromString(data)
    fields = list(_fields(model))
    message, field = random.choice(fields)
    if random.random() < 0.5:  # kinds of fields alike, however few of each there are
        kind = random.choice(sorted({field.full_name for _, field in fields}))
        message, field = random.choice([entry for entry in fields if entry[1].full_name == kind])
    what = _change_field(message, field, random)
    return model.SerializeToString(), f"graph: {what} {field.full_name}"


def _fields(message: Message) -> Any:
    for field, value in message.ListFields():
        yield message, field
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for child in value if field.is_repeated else [value]:
                yield from _fields(child)


def _change_field(message: Message, field: FieldDescriptor, random: Random) -> str:
    if field.is_repeated:
        items = getattr(message, field.name)
        at = random.randrange(len(items))
        what = random.choice(("drop", "double", "replace"))
        if what == "drop" or field.type == FieldDescriptor.TYPE_MESSAGE:
            kept = [copy.deepcopy(item) for item in items]
            if what == "drop":
                del kept[at]
            else:
                kept.insert(random.randrange(len(kept)), copy.deepcopy(kept[at]))
            message.ClearField(field.name)
            getattr(message, field.name).extend(kept)
        else:
            items[at] = _scalar(field, items[at], random)
        return what
    if field.type == FieldDescriptor.TYPE_MESSAGE or random.random() < 0.2:
        message.ClearField(field.name)
        return "clear"
    setattr(message, field.name, _scalar(field, getattr(message, field.name), random))
    return "replace"


def _scalar(field: FieldDescriptor, value: Any, random: Random) -> Any:
    """Another value that the field can hold."""
    if field.type == FieldDescriptor.TYPE_BYTES:
        return flip_bytes(value, random)[0]
    if field.type == FieldDescriptor.TYPE_STRING:
        return random.choice((*STRINGS, "Identity", "If", "Loop", "MatMul", "com.microsoft"))
    if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return random.choice(FLOATS)
    if field.type == FieldDescriptor.TYPE_ENUM:
        return random.choice(list(field.enum_type.values_by_number))
    bits = 31 if field.type == FieldDescriptor.TYPE_INT32 else 63
    number = random.choice((*INTEGERS, value + 1, value - 1, value + 64, 16, 27))
    low = 0 if field.type == FieldDescriptor.TYPE_UINT64 else -(1 << bits)
    return min(max(number, low), (1 << bits) - 1)
