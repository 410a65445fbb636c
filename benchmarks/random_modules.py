"""Random small modules: lists of operators of torch that a seed draws, as plain data.

A `Spec` says what the inputs are and what is computed of them, one line after the other; `Program`
is the module.  A line is kept only if it runs at two sizes of the free axes, so that sizes that
differ are never written down.  Nothing here knows what can be exported.
"""

import math
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from random_masks import random_mask
from random_operators import (
    ALONG,
    BINARY,
    COMPARE,
    REDUCE,
    UNARY,
    VOCABULARY,
    WIDTH,
    apply,
    layer_of,
)
from torch import Tensor, nn

SIZES = ({"b": 2, "t": 9}, {"b": 3, "t": 14})
NAMES = tuple("x X input self_ inputs past state h y mask lambda_ Add_0".split())


@dataclass
class Spec:
    """A module as data: inputs (kind and axes by name), lines, and which values are returned."""

    seed: int
    inputs: dict[str, dict[str, Any]]
    lines: list[dict[str, Any]]
    outputs: list[int]
    form: str = "tuple"

    def plain(self) -> dict[str, Any]:
        return dict(vars(self))


class Program(nn.Module):
    """The module of a `Spec`; its parameters are drawn by the seed."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        torch.manual_seed(spec.seed)
        self.layers = nn.ModuleDict()
        for number, line in enumerate(spec.lines):
            if (layer := layer_of(line)) is not None:
                self.layers[str(number)] = layer

    def compute(self, *inputs: Tensor) -> Any:
        values: list[Tensor] = list(inputs)
        for number, line in enumerate(self.spec.lines):
            layer = dict(self.layers.items()).get(str(number))
            values.append(apply(line, [values[at] for at in line["of"]], layer, values[0]))
        found = [values[at] for at in self.spec.outputs]
        if self.spec.form == "dict":
            return {f"out{number}": value for number, value in enumerate(found)}
        return found[0] if len(found) == 1 else tuple(found)


def module_of(spec: Spec) -> nn.Module:
    """A `Program` whose `forward` names its inputs as the spec does."""
    names = ", ".join(spec.inputs)
    scope: dict[str, Any] = {}
    exec(f"def forward(self, {names}):\n    return self.compute({names})\n", scope)
    drawn: nn.Module = type("Drawn", (Program,), {"forward": scope["forward"]})(spec)
    return drawn.eval()


def build(**config: Any) -> nn.Module:
    """A factory, as ``--model random_modules:build`` names one."""
    return module_of(Spec(**config))


def inputs_of(spec: Spec, sizes: dict[str, int], seed: int) -> dict[str, Tensor]:
    """Inputs at sizes of the free axes."""
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for name, entry in spec.inputs.items():
        shape = [sizes.get(axis, axis) for axis in entry["axes"]]
        if entry["kind"] == "ids":
            found[name] = torch.randint(VOCABULARY, shape, generator=draw)
        elif entry["kind"] == "bool":
            found[name] = torch.rand(shape, generator=draw) > 0.4
        else:
            value = torch.randn(shape, generator=draw)
            found[name] = value.double() if entry["kind"] == "float64" else value
    return found


def draw(seed: int) -> Spec:
    """The spec of a seed."""
    random = Random(seed)
    spec = Spec(seed, _drawn_inputs(random), [], [])
    held = [list(inputs_of(spec, sizes, 1).values()) for sizes in SIZES]
    for _ in range(random.randint(2, 7)):
        for _ in range(30):
            line = _drawn_line(random, held[0], held[1])
            if line is not None and _grow(spec, line, held):
                break
    if not spec.lines:
        spec.lines.append({"op": "clamp", "of": [0], "args": {}})
        held[0].append(held[0][0])
    last, count = len(held[0]) - 1, len(spec.inputs)
    spec.outputs = [last]
    if random.random() < 0.2 and last > count:
        spec.outputs.append(random.randrange(count, last))
    spec.form = random.choice(["tuple", "tuple", "dict"])
    return spec


def _drawn_inputs(random: Random) -> dict[str, dict[str, Any]]:
    names = random.sample(NAMES, 3)
    layouts: Any = (
        [["b", "t", WIDTH]] * 5 + [["b", WIDTH, "t"], ["t", "b", WIDTH], ["b", "t"], ["t", WIDTH],
        ["b", WIDTH], ["b", 3, "t", 4], [1, "t", WIDTH], ["t"]]
    )  # fmt: skip
    axes = random.choice(layouts)
    found: dict[str, dict[str, Any]]
    if random.random() < 0.3:
        found = {"input_ids": {"kind": "ids", "axes": ["b", "t"]}}
    else:
        kind = random.choice(["float"] * 6 + ["float64"])
        found = {names[0]: {"kind": kind, "axes": axes}}
    if random.random() < 0.15:
        kind = random.choice(["float", "bool", "ids"])
        others: list[list[int | str]] = [axes, ["b", "t"], ["b", WIDTH]]
        found[names[1]] = {"kind": kind, "axes": random.choice(others)}
    return found


def _grow(spec: Spec, line: dict[str, Any], held: list[list[Tensor]]) -> bool:
    """Add a line if it runs, and its values stay small, at both sizes."""
    torch.manual_seed(0)
    try:
        layer = layer_of(line)
        if layer is not None:
            layer.eval()
        with torch.no_grad():
            found = [apply(line, [x[at] for at in line["of"]], layer, x[0]) for x in held]
    except Exception:  # noqa: BLE001  whatever torch has against it
        return False
    whole = [x.is_complex() or not x.numel() or x.numel() > 50_000 or x.dim() > 5 for x in found]
    if any(whole) or any(x.is_floating_point() and bool((x.abs() > 1e4).any()) for x in found):
        return False
    for values, value in zip(held, found, strict=True):
        values.append(value)
    spec.lines.append(line)
    return True


def _drawn_line(random: Random, small: list[Tensor], large: list[Tensor]) -> dict[str, Any] | None:
    at = random.choice([len(small) - 1] * 4 + list(range(len(small))))
    x, other = small[at], large[at]
    dim = random.randrange(x.dim()) if x.dim() else 0
    fixed = x.dim() and x.shape[dim] == other.shape[dim]
    size = x.shape[dim] if fixed else None
    if not x.is_floating_point():
        choices = ["embedding"] * 6 + ["back", "one_hot", "cumsum", "compare", "arange", "scalar"]
        op = random.choice(choices)
    else:
        family = random.choice(
            ["unary", "binary", "reduce", "along", "layer", "layer", "layer", "shape", "shape",
             "misc", "misc", "attend", "loop"]
        )  # fmt: skip
        op = random.choice(
            {
                "unary": UNARY, "binary": BINARY, "reduce": REDUCE, "along": ALONG,
                "layer": "linear linear conv conv layer_norm rms_norm batch_norm group_norm "
                "instance_norm gru lstm rnn mha".split(),
                "shape": "permute permute flatten unflatten unsqueeze squeeze select narrow slice "
                "shift shift cat stack chunk repeat expand unfold".split(),
                "misc": "matmul einsum gather index topk where masked_fill clamp scalar compare to "
                "back arange tril shape pool interpolate nonzero dropout inplace assign".split(),
                "attend": ["attend"], "loop": ["loop"],
            }[family]
        )  # fmt: skip
    like = [n for n, y in enumerate(small) if y.shape == x.shape] or [at]
    line: dict[str, Any] = {"op": op, "of": [at], "args": {"dim": dim}}
    a = line["args"]
    last = x.shape[-1] if x.dim() and x.shape[-1] == other.shape[-1] else None
    channels = x.shape[1] if x.dim() > 1 and x.shape[1] == other.shape[1] else None
    if op in BINARY or op in ("where", "compare", "matmul"):
        line["of"].append(random.choice(like))
        a |= {"above": random.choice([0.0, 0.3]), "fill": random.choice([0.0, -1e4, 2.5])}
        a["by"] = random.choice(COMPARE)
    elif op in ("cat", "stack"):
        line["of"] += [random.choice(like)]
    elif op in ("linear", "layer_norm", "rms_norm", "gru", "lstm", "rnn", "mha"):
        if last is None:
            return None
        a |= {
            "size": last, "out": random.choice([WIDTH, 4, 2 * WIDTH]),
            "bias": random.random() < 0.7, "layers": random.choice([1, 1, 2]),
            "first": random.random() < 0.8,
            "both": random.random() < 0.1, "causal": random.random() < 0.7,
        }  # fmt: skip
    elif op in ("conv", "batch_norm", "group_norm", "instance_norm"):
        if channels is None:
            return None
        kernel, dilation = random.choice([1, 2, 3, 4]), random.choice([1, 1, 2])
        reach = (kernel - 1) * dilation
        left = random.choice([reach, reach, 0])
        a |= {
            "size": channels, "kernel": kernel, "dilation": dilation, "left": left,
            "groups": random.choice([1, channels]), "more": random.choice([0, 0, 0, 1]),
            "padding": 0 if left else random.choice([0, reach]),
            "stride": random.choice([1] * 6 + [2]),
        }  # fmt: skip
    elif op in REDUCE:
        a["keep"] = random.random() < 0.5
    elif op == "permute":
        a["order"] = random.sample(range(x.dim()), x.dim())
    elif op == "unflatten":
        if size is None or size % 2:
            return None
        a["size"] = 2
    elif op in ("select", "narrow", "index", "unfold", "chunk"):
        if size is None and random.random() < 0.7:
            return None
        a |= {"at": random.choice([0, 1]), "size": random.choice([1, 2, 3])}
        if op == "index":
            a["at"] = random.choice([[0, 1], [1, 1, 0], [0]])
    elif op == "slice":
        a |= {"from": random.choice([0, 1, 2]), "step": random.choice([1, 1, 2])}
    elif op in ("repeat", "expand"):
        a["times"] = random.choice([1, 2])
    elif op in ("shift", "roll"):
        a["by"] = random.choice([1, 2, 3])
    elif op == "einsum":
        line["of"].append(random.choice(like))
        a["equation"] = random.choice(
            ["btc,bsc->bts", "btc,btd->bcd", "btc,btc->bt", "btc,btc->btc", "b...,b...->..."]
        )
    elif op == "to":
        a["dtype"] = random.choice(["float64", "float16", "int64", "bool", "int32", "bfloat16"])
    elif op == "tril":
        a["diagonal"] = random.choice([0, 0, -1, 1])
    elif op == "pool":
        a |= {"kernel": random.choice([1, 2]), "stride": random.choice([1, 2])}
    elif op == "scalar":
        a |= {"by": random.choice([2.0, -1.0, 3]), "plus": random.choice([0.0, 1, math.pi])}
    elif op == "masked_fill":
        a |= {"above": 0.5, "fill": random.choice([0.0, -1e4])}
    elif op == "attend":
        if last is None or x.dim() != 3:
            return None
        line["of"] = [at, random.choice(like), random.choice(like)]
        a |= {"heads": random.choice([1, 2]), "mask": random.choice(
            ["causal", "causal", "none", random_mask(random), random_mask(random)]
        )}  # fmt: skip
    elif op == "loop":
        if x.dim() != 3:
            return None
        a["kind"] = random.choice(["leaky", "gate", "reset"])
    return line
