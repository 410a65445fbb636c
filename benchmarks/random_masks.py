"""Random masks and biases: expressions over positions, tables and token ids, as nested lists.

A mask is an expression over the queries' positions i, the keys' j and the ids; `random_mask` draws
one, `masked_scores` is attention under it.
"""

import operator
from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

LONG = 4096
DRAWN = torch.Generator().manual_seed(7)
BITS = torch.rand(LONG, generator=DRAWN) > 0.5
TABLE = torch.randn(LONG, generator=DRAWN)
BLOCKS = torch.rand(LONG // 16, LONG // 16, generator=DRAWN) > 0.3
KINDS = torch.rand(64, 64, generator=DRAWN) > 0.3
WIDTHS = torch.randint(1, 40, (64,), generator=DRAWN)
CONSTANTS = (0, 1, 2, 3, 4, 5, 7, 8, 13, 16, 31, 64, 100, 299, 300, 512, 700, 1000, 1500)

Expression = list[Any]
FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "and": operator.and_, "or": operator.or_, "xor": operator.xor, "not": operator.invert,
    "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
    "eq": operator.eq, "ne": operator.ne, "add": operator.add, "sub": operator.sub,
    "mul": operator.mul, "div": operator.floordiv, "mod": operator.mod,
    "frac": operator.truediv, "wherebool": torch.where, "abs": torch.abs,
    "floor": lambda a, b: torch.floor(a / b), "min": lambda a, b: a.clamp(max=b),
    "max": lambda a, b: a.clamp(min=b), "float": lambda a: a.float(), "half": lambda a: a.half(),
    "int32": lambda a: a.int(), "byte": lambda a: a.to(torch.uint8),
    "bfloat16": lambda a: a.bfloat16(), "sin": lambda a: torch.sin(a * 0.1),
    "parity": lambda a: a.long() & 1, "sqrt": lambda a: a.abs().float().sqrt(),
    "log": lambda a: (a.abs().float() + 1).log(),
}  # fmt: skip


def random_mask(random: Random) -> Expression:
    """An expression whose value is boolean, or, at the root, what is added to scores."""
    forms: list[Expression] = (
        [["le", "j", "i"], ["ge", "i", "j"], ["gt", ["add", "i", 1], "j"], ["tril", 0],
         ["lt", "j", ["add", "i", 1]], ["not", ["triu", 1]], ["ge", ["sub", "i", "j"], 0],
         ["lt", ["sub", "j", "i"], 0.5]]
    )  # fmt: skip
    causal = random.choice(forms)
    mask = _bool(random, 2) if random.random() < 0.02 else ["and", causal, _bool(random, 3)]
    mask = ["or", mask, ["eq", "i", "j"]]  # no row is empty
    draw = random.random()
    if draw < 0.35:
        return mask
    fill = random.choice([float("-inf"), -1e4, -3.4028234663852886e38, -1e9])
    if draw < 0.6:
        return ["bias", mask, fill, ["zero"]]
    return ["bias", mask, fill, _number(random, 2)]


def _bool(random: Random, depth: int) -> Expression:
    draw = random.random()
    if depth and draw < 0.45:
        kind = random.choice(["and", "or", "or", "xor", "not", "wherebool"])
        if kind == "not":
            return ["not", _bool(random, depth - 1)]
        if kind == "wherebool":
            return [kind, *(_bool(random, depth - 1) for _ in range(3))]
        return [kind, _bool(random, depth - 1), _bool(random, depth - 1)]
    if draw < 0.55:
        constant = random.choice(CONSTANTS)
        return random.choice(
            [["tril", -constant], ["not", ["tril", -constant]], ["bits", "j"], ["bits", "i"],
             ["blocks"], ["kinds"], ["band", constant], ["inwidth"], ["eqid", random.randrange(6)]]
        )  # fmt: skip
    kind = random.choice(["lt", "le", "gt", "ge", "eq", "ne"])
    return [kind, _number(random, 1), random.choice([_number(random, 1), random.choice(CONSTANTS)])]


def _number(random: Random, depth: int) -> Any:
    draw = random.random()
    constant = random.choice(CONSTANTS[1:])
    if not depth or draw < 0.3:
        return random.choice(
            ["i", "j", ["sub", "i", "j"], ["sub", "j", "i"], ["abs", ["sub", "i", "j"]]]
        )
    inner = random.choice(["i", "j", ["sub", "i", "j"], _number(random, depth - 1)])
    found: list[Expression] = (
        [
            ["div", inner, constant], ["mod", inner, constant], ["frac", inner, constant],
            ["mul", inner, random.choice([0.1, 2, -1, 3])], ["sin", inner], ["byte", inner],
            ["float", inner], ["half", inner], ["int32", inner], ["bfloat16", inner],
            ["add", inner, constant], ["min", inner, constant], ["max", inner, constant],
            ["table", inner], ["docs", random.choice("ij"), random.randrange(6)],
            ["id", random.choice("ij")], ["sub", ["docs", "i", 2], ["docs", "j", 2]],
            ["sub", ["id", "i"], ["id", "j"]], ["parity", inner], ["floor", inner, constant],
            ["mulij"], ["sqrt", inner], ["rank", random.choice("ij")], ["log", inner],
        ]
    )  # fmt: skip
    return random.choice(found)


def masked_scores(mask: Expression, ids: Tensor | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of queries [batch, heads, T, K] under a mask."""
    size = q.shape[2]
    found = evaluate(mask, size, ids if ids is not None and ids.dim() == 2 else None, q)
    if found.dtype is not torch.bool:
        found = found.to(q.dtype)
    while found.dim() < 4:
        found = found[None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=found)


def evaluate(mask: Any, size: int, ids: Tensor | None, q: Tensor) -> Tensor:
    """The value of an expression: [T, T], or [batch, 1, T, T] where ids are in it."""
    places = torch.arange(size, device=q.device)

    def side(value: Tensor, which: str) -> Tensor:
        """A value for each token [T] or [batch, T], along queries or keys."""
        value = value[..., :, None] if which == "i" else value[..., None, :]
        return value[:, None] if value.dim() == 3 else value

    def of(e: Any) -> Any:
        if e == "i":
            return side(places, "i")
        if e == "j":
            return side(places, "j")
        if isinstance(e, int | float):
            return e
        op, *rest = e
        match op:
            case "tril":
                return torch.ones(size, size, dtype=torch.bool).tril(rest[0])
            case "triu":
                return torch.ones(size, size, dtype=torch.bool).triu(rest[0])
            case "band":
                return torch.ones(size, size).tril().triu(-rest[0]) > 0
            case "bits":
                return side(BITS[:size], rest[0])
            case "blocks":
                block = places // 16
                return BLOCKS[block[:, None], block[None]]
            case "kinds":
                kinds = ids if ids is not None else (places % 64)[None]
                return KINDS[kinds[:, :, None], kinds[:, None]][:, None]
            case "inwidth":
                widths = WIDTHS[ids] if ids is not None else WIDTHS[places % 64]
                return (places[:, None] - places[None]) < side(widths, "i")
            case "eqid":
                return (
                    side(ids == rest[0], "j") if ids is not None else side(places == rest[0], "j")
                )
            case "docs":
                found = ids == rest[1] if ids is not None else places % 5 == rest[1]
                return side(found.long().cumsum(-1), rest[0])
            case "id":
                return side(ids if ids is not None else places % 11, rest[0])
            case "rank":
                return side((torch.ones(size).cumsum(0) - 1), rest[0])
            case "zero":
                return torch.zeros((), dtype=q.dtype)
            case "mulij":
                return places[:, None] * places[None]
            case "bias":
                bias = of(rest[2])
                return torch.where(of(rest[0]), torch.as_tensor(bias).to(q.dtype) * 0.01, rest[1])
            case "table":
                return TABLE[torch.as_tensor(of(rest[0])).abs().long() % LONG]
        values = [of(each) for each in rest]
        return FUNCTIONS[op](*values)

    found: Tensor = of(mask)
    return found
