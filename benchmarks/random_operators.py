"""Operators of torch by name, as lines of random modules have them: what each computes.

A line is a mapping: `op` is the name, `of` says of which values, `args` are numbers and words.
"""

from collections.abc import Callable
from typing import Any

import torch
from random_masks import masked_scores
from torch import Tensor, nn
from torch.nn import functional as F

Line = dict[str, Any]
VOCABULARY, WIDTH = 32, 8
COMPARE = "lt le gt ge eq ne".split()
UNARY = (
    "tanh relu sigmoid exp abs neg sin cos square erf floor sign softplus silu gelu log1p sqrt "
    "rsqrt reciprocal isnan logsigmoid hardswish leaky_relu elu mish trunc round ceil atan log"
).split()
BINARY = "add sub mul div maximum minimum atan2 fmod remainder pow copysign hypot".split()
REDUCE = "mean sum amax amin std var logsumexp prod argmax norm any all median".split()
ALONG = (
    "cumsum cumprod softmax log_softmax flip sort roll cummax diff normalize logcumsumexp"
).split()
POSITIVE = {"log1p", "sqrt", "rsqrt", "reciprocal", "log"}
RECURRENT: dict[str, Any] = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}


def layer_of(line: Line) -> nn.Module | None:
    """The layer with parameters of a line, where it has one."""
    a = line["args"]
    match line["op"]:
        case "linear":
            return nn.Linear(a["size"], a["out"], bias=a["bias"])
        case "embedding":
            return nn.Embedding(VOCABULARY, WIDTH)
        case "conv":
            return nn.Conv1d(
                a["size"], a["size"], a["kernel"], dilation=a["dilation"], groups=a["groups"],
                padding=a["padding"], stride=a["stride"],
            )  # fmt: skip
        case "layer_norm":
            return nn.LayerNorm(a["size"])
        case "rms_norm":
            return nn.RMSNorm(a["size"])
        case "batch_norm":
            return nn.BatchNorm1d(a["size"])
        case "group_norm":
            return nn.GroupNorm(2, a["size"])
        case "instance_norm":
            return nn.InstanceNorm1d(a["size"])
        case "gru" | "lstm" | "rnn":
            recurrent: nn.Module = RECURRENT[line["op"]](
                a["size"], WIDTH, num_layers=a["layers"], batch_first=a["first"],
                bidirectional=a["both"],
            )  # fmt: skip
            return recurrent
        case "mha":
            return nn.MultiheadAttention(a["size"], 2, batch_first=True)
    return None


def apply(line: Line, v: list[Tensor], layer: nn.Module | None, first: Tensor) -> Tensor:
    """What a line makes of its values."""
    op, a = line["op"], line["args"]
    found: Tensor
    if layer is not None:
        found = _through(layer, op, a, v[0])
    elif op in SPECIAL:
        found = SPECIAL[op](v, a, first)
    elif op in UNARY:
        value = v[0].abs() + 0.5 if op in POSITIVE else v[0]
        found = getattr(torch if hasattr(torch, op) else F, op)(value)
    elif op in REDUCE:
        reduced = getattr(torch, op)(v[0], dim=a["dim"], keepdim=a["keep"])
        found = reduced[0] if op == "median" else reduced
    elif op in ALONG:
        found = _along(op, v[0], a)
    else:
        found = getattr(torch, op)(*v)
    return found


def _through(layer: Any, op: str, a: Line, x: Tensor) -> Tensor:
    found: Tensor
    if op == "conv":
        found = layer(F.pad(x, (a["left"], 0)))[..., : x.shape[-1] + a["more"]]
    elif op in RECURRENT:
        found = layer(x)[0]
    elif op == "mha":
        size = x.shape[1]
        mask = torch.ones(size, size, dtype=torch.bool).triu(1) if a["causal"] else None
        found = layer(x, x, x, attn_mask=mask, need_weights=False)[0]
    else:
        found = layer(x)
    return found


def _along(op: str, x: Tensor, a: Line) -> Tensor:
    dim = a["dim"]
    match op:
        case "flip":
            return x.flip(dim)
        case "sort":
            return x.sort(dim).values
        case "roll":
            return x.roll(a["by"], dim)
        case "cummax":
            return x.cummax(dim).values
        case "cumprod":
            return (x.tanh() * 1.1).cumprod(dim)
        case "normalize":
            return F.normalize(x, dim=dim)
        case "diff":
            return torch.cat((x.narrow(dim, 0, 1), x.diff(dim=dim)), dim)
        case _:
            found: Tensor = getattr(torch, op)(x, dim)
            return found


def _shift(v: list[Tensor], a: Line, _: Tensor) -> Tensor:
    pad = [0, 0] * (v[0].dim() - 1 - a["dim"]) + [a["by"], 0]
    return F.pad(v[0], pad).narrow(a["dim"], 0, v[0].shape[a["dim"]])


def _attend(v: list[Tensor], a: Line, first: Tensor) -> Tensor:
    q, k, w = (torch.unflatten(x, -1, (a["heads"], -1)).transpose(1, 2) for x in v)
    if a["mask"] == "causal":
        found = F.scaled_dot_product_attention(q, k, w, is_causal=True)
    elif a["mask"] == "none":
        found = F.scaled_dot_product_attention(q, k, w)
    else:
        found = masked_scores(a["mask"], first if not first.is_floating_point() else None, q, k, w)
    return found.transpose(1, 2).flatten(2)


def _loop(v: list[Tensor], a: Line, _: Tensor) -> Tensor:
    """A recurrence in Python, over the axis 1 of [batch, time, width]."""
    x, h, found = v[0], torch.zeros_like(v[0][:, 0]), []
    for t in range(x.shape[1]):
        if a["kind"] == "leaky":
            h = 0.8 * h + x[:, t]
        elif a["kind"] == "gate":
            g = x[:, t].sigmoid()
            h = g * h + (1 - g) * x[:, t].tanh()
        else:
            h = torch.where(x[:, t] > 0, h + 1, torch.zeros_like(h))
        found.append(h)
    return torch.stack(found, 1)


def _where(v: list[Tensor], a: Line, _: Tensor) -> Tensor:
    return torch.where(v[0] > a["above"], v[1], v[1].new_full((), a["fill"]))


SPECIAL: dict[str, Callable[[list[Tensor], Line, Tensor], Tensor]] = {
    "permute": lambda v, a, _: v[0].permute(a["order"]),
    "flatten": lambda v, a, _: v[0].flatten(a["dim"], a["dim"] + 1),
    "unflatten": lambda v, a, _: torch.unflatten(v[0], a["dim"], (-1, a["size"])),
    "unsqueeze": lambda v, a, _: v[0].unsqueeze(a["dim"]),
    "squeeze": lambda v, a, _: v[0].squeeze(a["dim"]),
    "select": lambda v, a, _: v[0].select(a["dim"], a["at"]),
    "narrow": lambda v, a, _: v[0].narrow(a["dim"], a["at"], a["size"]),
    "slice": lambda v, a, _: (
        v[0].transpose(0, a["dim"])[a["from"] :: a["step"]].transpose(0, a["dim"])
    ),
    "shift": _shift,
    "cat": lambda v, a, _: torch.cat(v, a["dim"]),
    "stack": lambda v, a, _: torch.stack(v, a["dim"]),
    "chunk": lambda v, a, _: v[0].chunk(2, a["dim"])[a["at"]],
    "repeat": lambda v, a, _: v[0].repeat_interleave(a["times"], a["dim"]),
    "expand": lambda v, a, _: v[0].unsqueeze(0).expand(a["times"], *v[0].shape),
    "matmul": lambda v, *_: v[0] @ v[1].mT,
    "einsum": lambda v, a, _: torch.einsum(a["equation"], *v),
    "gather": lambda v, a, _: v[0].gather(a["dim"], v[0].argsort(a["dim"])),
    "index": lambda v, a, _: v[0].index_select(a["dim"], torch.tensor(a["at"])),
    "topk": lambda v, a, _: v[0].topk(1, a["dim"]).values,
    "where": _where,
    "masked_fill": lambda v, a, _: v[0].masked_fill(v[0] > a["above"], a["fill"]),
    "clamp": lambda v, *_: v[0].clamp(-0.5, 1.5),
    "scalar": lambda v, a, _: v[0] * a["by"] + a["plus"],
    "compare": lambda v, a, _: getattr(torch, a["by"])(v[0], v[1]).float(),
    "to": lambda v, a, _: v[0].to(getattr(torch, a["dtype"])),
    "back": lambda v, *_: v[0].float(),
    "arange": lambda v, a, _: (
        v[0]
        + torch.arange(v[0].shape[a["dim"]]).reshape(
            [-1 if at == a["dim"] else 1 for at in range(v[0].dim())]
        )
    ),
    "one_hot": lambda v, *_: F.one_hot(v[0] % 5, 5).float(),
    "tril": lambda v, a, _: (v[0] @ v[0].mT).tril(a["diagonal"]) @ v[0],
    "attend": _attend,
    "loop": _loop,
    "shape": lambda v, a, _: v[0] / v[0].shape[a["dim"]],
    "pool": lambda v, a, _: F.avg_pool1d(v[0], a["kernel"], a["stride"]),
    "interpolate": lambda v, *_: F.interpolate(v[0], scale_factor=2.0, mode="nearest"),
    "unfold": lambda v, a, _: v[0].unfold(-1, a["size"], 1),
    "nonzero": lambda v, *_: v[0][v[0] > 0],
    "dropout": lambda v, *_: F.dropout(v[0], 0.1, training=False),
    "inplace": lambda v, *_: v[0].clone().mul_(0.5).add_(1.0),
    "assign": lambda v, a, _: _assigned(v[0], a),
}


def _assigned(x: Tensor, a: Line) -> Tensor:
    found = x.clone()
    found.select(a["dim"], 0).fill_(0.25)
    return found
