"""PTX as a list of instructions: what Triton emits, not all of the language."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

SCOPE = "{} \n\t"  # of assembly within a kernel
NOWHERE = -1
WIDTHS = {"pred": 0, "b8": 1, "b16": 2, "b32": 4, "b64": 8}


@dataclass(frozen=True)
class Register:
    """A register of every thread: its place among all, and its bytes, 0 for a predicate."""

    index: int
    width: int


@dataclass(frozen=True)
class Immediate:
    """A constant: its bits, or the whole number whose low bits they are."""

    bits: int


@dataclass(frozen=True)
class Special:
    """A register that tells where a thread is, such as tid.x."""

    name: str


@dataclass(frozen=True)
class Address:
    """What stands between brackets."""

    base: "Register | Immediate | str"
    offset: int


@dataclass(frozen=True)
class Negated:
    """A predicate that is taken the other way round."""

    register: Register


Operand = Register | Immediate | Special | Address | Negated | str | tuple["Operand", ...]


@dataclass(frozen=True)
class Instruction:
    """One statement.

    Attributes:
        name: the opcode with its suffixes, taken apart at the dots.
        operands: in their order.
        guard: the predicate under which it is carried out; None for always.
        text: as it stands in the PTX.
    """

    name: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: Register | Negated | None
    text: str


@dataclass(kw_only=True)
class Program:
    """A kernel.

    Attributes:
        parameters: bytes of each, by name.
        instructions: of its body.
        labels: the instruction that each stands before; NOWHERE if there are several of it.
        registers: bytes of each register.
        shared: bytes of shared memory that it declares itself.
        symbols: where these lie; what the launch adds comes after them.
    """

    parameters: dict[str, int] = field(default_factory=dict)
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    registers: list[int] = field(default_factory=list)
    shared: int = 0
    symbols: dict[str, int] = field(default_factory=dict)


def parse(ptx: str, entry: str) -> Program:
    """Read the kernel `entry`."""
    program = Program()
    text = re.sub(r"//[^\n]*", "", ptx)
    found = re.search(rf"\.visible \.entry {re.escape(entry)}\((.*?)\)(.*?)\{{", text, re.DOTALL)
    assert found is not None, f"no entry {entry}"
    head, body = text[: found.start()], _block(text[found.end() :])
    for kind, name in re.findall(r"\.param \.(\w+)[^,\n]*? (\w+)(?:,|\s*$)", found[1]):
        program.parameters[name] = int(kind[1:]) // 8
    for align, name, size in re.findall(r"\.shared \.align (\d+) \.b8 (\w+)\[(\d*)\]", head + body):
        program.shared += -program.shared % int(align)
        program.symbols[name] = program.shared
        program.shared += int(size or 0)
    names: dict[str, Register] = {}
    for statement in _statements(body):
        if statement.startswith(".reg"):
            _declare(statement, names, program.registers)
        elif statement.endswith(":"):
            name = statement[:-1]
            known = name in program.labels  # of assembly that stands there twice
            program.labels[name] = NOWHERE if known else len(program.instructions)
        else:
            program.instructions.append(_instruction(statement, names))
    return program


def _block(text: str) -> str:
    """What stands before the brace that closes a block."""
    depth = 1
    for found in re.finditer(r"[{}]", text):
        depth += 1 if found[0] == "{" else -1
        if depth == 0:
            return text[: found.start()]
    raise AssertionError("a block without an end")


def _statements(body: str) -> Iterator[str]:
    """Declarations of registers, labels with their colon, and instructions."""
    lines = [line for line in body.split("\n") if not line.strip().startswith(".loc")]
    for piece in "\n".join(lines).split(";"):
        text = piece.strip().lstrip(SCOPE)
        while label := re.match(r"(\$?\w+):\s*", text):
            yield label[1] + ":"
            text = text[label.end() :].lstrip(SCOPE)
        if text and not text.startswith((".shared", ".pragma", ".extern")):
            yield " ".join(text.split())


def _declare(statement: str, names: dict[str, Register], registers: list[int]) -> None:
    """Add the registers of `.reg .b32 %r<52>` or `.reg .b32 u, v`."""
    _, kind, listed = statement.split(None, 2)
    width = WIDTHS["pred" if kind == ".pred" else "b" + kind[2:]]
    for name in listed.split(","):
        many = re.fullmatch(r"(%?\w+)<(\d+)>", name.strip())
        every = [f"{many[1]}{i}" for i in range(int(many[2]))] if many else [name.strip()]
        for each in every:
            names[each] = Register(len(registers), width)
            registers.append(width)


def _instruction(statement: str, names: dict[str, Register]) -> Instruction:
    guard = re.match(r"@(!?)(%?\w+)\s+", statement)
    text = statement[guard.end() :] if guard else statement
    opcode, _, rest = text.partition(" ")
    condition: Register | Negated | None = None
    if guard:
        condition = Negated(names[guard[2]]) if guard[1] else names[guard[2]]
    return Instruction(
        name=tuple(part for part in re.split(r"\.|::", opcode) if part),
        operands=tuple(_operand(part, names) for part in _apart(rest)),
        guard=condition,
        text=statement,
    )


def _apart(text: str) -> list[str]:
    """Parts between the commas that no bracket encloses."""
    parts, depth, start = [], 0, 0
    for index, character in enumerate(text):
        depth += (character in "{[") - (character in "}]")
        if character in ",|" and depth == 0:
            parts.append(text[start:index].strip())
            start = index + 1
    return [*parts, text[start:].strip()] if text.strip() else []


def _operand(text: str, names: dict[str, Register]) -> Operand:
    if text.startswith("{"):
        return tuple(_operand(part, names) for part in _apart(text[1:-1]))
    if text.startswith("["):
        base, _, offset = text[1:-1].replace("+-", "+ -").partition("+")
        inner = _operand(base.strip(), names)
        assert isinstance(inner, Register | Immediate | str), text
        return Address(inner, int(offset.strip() or "0", 0))
    if text.startswith("!"):
        return Negated(names[text[1:]])
    if text in names:
        return names[text]
    if text.startswith("%"):
        return Special(text[1:])
    if re.fullmatch(r"0[fFdD][0-9A-Fa-f]+", text):
        return Immediate(int(text[2:], 16))  # noqa: FURB166  0f is no prefix of Python's
    if re.fullmatch(r"-?(0x[0-9A-Fa-f]+|\d+)U?", text):
        return Immediate(int(text.rstrip("U"), 0))
    return text
