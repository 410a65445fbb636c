"""Small modules that mix tokens in every way that statefulize accepts, and in ways it refuses."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intaglio.ops import linear_attention

D, HEADS, KV_HEADS, SIZE, VOCABULARY = 32, 4, 2, 8, 31
ROWS = 13  # of learned positions


class Residual(nn.Module):
    """Embedding, a mixer in a residual stream, logits: what a language model is around it."""

    def __init__(self, *mixers: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, D)
        self.layers = nn.ModuleList(mixers)
        self.head = nn.Linear(D, VOCABULARY)

    def forward(self, input_ids: Tensor) -> Tensor:
        x: Tensor = self.embed(input_ids)
        for layer in self.layers:
            x = x + layer(x)
        logits: Tensor = self.head(x)
        return logits


class Attention(nn.Module):
    """Grouped-query attention in the spellings of positions, masks and heads found in the wild."""

    table: Tensor
    memory: Tensor

    def __init__(
        self,
        positions: str = "rope",
        window: int | None = None,
        *,
        kv_heads: int = KV_HEADS,
        repeat: str = "",
        bias: str = "",
        causal: bool = True,
        cross: bool = False,
        manual: bool = False,
    ) -> None:
        super().__init__()
        self.q = nn.Linear(D, HEADS * SIZE)
        self.k = nn.Linear(D, kv_heads * SIZE)
        self.v = nn.Linear(D, kv_heads * SIZE)
        self.out = nn.Linear(HEADS * SIZE, D)
        self.register_buffer("table", torch.randn(ROWS, SIZE))
        self.register_buffer("memory", torch.randn(1, kv_heads, 5, SIZE))
        self.positions, self.window, self.repeat = positions, window, repeat
        self.bias, self.causal, self.cross, self.manual = bias, causal, cross, manual

    def rotate(self, x: Tensor) -> Tensor:
        time = x.shape[2]
        if self.positions == "table":
            return x * self.table[:time]
        steps = torch.arange(time, dtype=torch.float32)
        if self.positions == "expanded":
            steps = steps[None].expand(x.shape[0], time)
        angle = steps[..., None] * torch.tensor([1.0, 0.3, 0.1, 0.03])
        if self.positions == "expanded":
            angle = angle[:, None]
        if self.positions == "transposed":
            angle = (torch.tensor([[1.0], [0.3], [0.1], [0.03]]) @ steps[None, :]).T
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        a, b = x.chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    def mask(self, time: int) -> Tensor | None:
        i = torch.arange(time)
        behind = i[:, None] - i[None, :]
        if self.bias == "alibi":
            bias = -0.5 * behind.abs().float()
            return bias.masked_fill(behind < 0, float("-inf"))
        if self.bias == "float":
            zeros = torch.zeros(time, time)
            return zeros.masked_fill(behind < 0, torch.finfo(torch.float32).min)
        if self.bias == "both":
            return behind.abs() < 3
        if self.window is not None:
            return (behind >= 0) & (behind < self.window)
        return None

    def forward(self, x: Tensor) -> Tensor:
        batch, time, _ = x.shape
        q, k, v = (
            layer(x).view(batch, time, -1, SIZE).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        if self.positions:
            q, k = self.rotate(q), self.rotate(k)
        if self.repeat == "interleave":
            k, v = (t.repeat_interleave(HEADS // t.shape[1], 1) for t in (k, v))
        if self.repeat == "expand":
            k, v = (
                t[:, :, None].expand(-1, -1, HEADS // t.shape[1], -1, -1).flatten(1, 2)
                for t in (k, v)
            )
        if self.repeat == "tile":
            k, v = (t.repeat(1, HEADS // t.shape[1], 1, 1) for t in (k, v))
        if self.cross:
            k, v = (self.memory.expand(batch, -1, -1, -1) for _ in "kv")
        if self.manual:
            k, v = (t.repeat_interleave(HEADS // t.shape[1], 1) for t in (k, v))
            scores = (q @ k.transpose(-1, -2)) / SIZE**0.5
            future = torch.ones(time, time, dtype=torch.bool).triu(1)
            scores = scores.masked_fill(future, float("-inf")) if self.causal else scores
            y = scores.softmax(-1) @ v
        else:
            mask = self.mask(time)
            y = F.scaled_dot_product_attention(
                q, k, v, mask, is_causal=self.causal and mask is None, enable_gqa=not self.repeat
            )
        result: Tensor = self.out(y.transpose(1, 2).reshape(batch, time, HEADS * SIZE))
        return result


class Convolution(nn.Module):
    """A causal convolution over time in the spellings found in the wild."""

    def __init__(self, spelling: str, groups: int = D, dilation: int = 1, kernel: int = 4) -> None:
        super().__init__()
        self.spelling, self.reach = spelling, (kernel - 1) * dilation
        padding = {"pad": 0, "symmetric": self.reach // 2}.get(spelling, self.reach)
        self.conv = nn.Conv1d(D, D, kernel, groups=groups, dilation=dilation, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        time = x.shape[1]
        x = x.transpose(1, 2)
        if self.spelling == "pad":
            y = F.silu(self.conv(F.pad(x, (self.reach, 0))))
        elif self.spelling == "trim":
            y = F.silu(self.conv(x)[..., :time])
        elif self.spelling == "trim after":
            y = F.silu(self.conv(x))[..., : -self.reach]
        else:
            y = self.conv(x)
        return y.transpose(1, 2)


class Recurrence(nn.Module):
    """Linear attention with a data-dependent decay and, for the delta rules, a write strength."""

    def __init__(self, rule: str, *, per_key: bool = False) -> None:
        super().__init__()
        self.rule = rule
        self.qkv = nn.Linear(D, 3 * D)
        self.gate = nn.Linear(D, D if per_key else HEADS)
        self.beta = nn.Linear(D, HEADS)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        k = F.normalize(k.unflatten(-1, (HEADS, SIZE)), dim=-1).flatten(-2)
        y, _ = linear_attention(
            q,
            k,
            v,
            decay=F.logsigmoid(self.gate(x)) if "gated" in self.rule else None,
            beta=self.beta(x).sigmoid() if "delta" in self.rule else None,
            update_rule=self.rule,
            q_num_heads=HEADS,
            kv_num_heads=HEADS,
            scale=0.5,
        )
        return y


class Flattened(nn.Module):
    """A feed-forward that merges batch and time, as mixtures of experts do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x.reshape(-1, D))
        return y.relu().view(x.shape)


class Turned(nn.Module):
    """Angles of positions on several axes, and pairs of channels turned as complex numbers."""

    def forward(self, x: Tensor) -> Tensor:
        batch, time, _ = x.shape
        places = torch.arange(time).view(1, 1, -1).expand(3, batch, -1)
        rates = 1 / 10 ** (torch.arange(D // 2) / D)
        angles = rates[None, None, :, None].expand(3, batch, -1, 1) @ places[:, :, None].float()
        angles = angles.transpose(2, 3)
        y = torch.cat([angles[axis, :, :, axis::3] for axis in range(3)], dim=-1).cos() * 0.5
        flat = torch.outer(torch.arange(time).float(), rates)[None]
        turns = torch.polar(torch.ones_like(flat), flat)
        z = torch.view_as_complex(x.reshape(batch, time, -1, 2)) * turns
        return torch.view_as_real(z).flatten(2) + y.repeat(1, 1, 2)


class Routed(nn.Module):
    """A router over rows of batch*time, whose best group is marked by a scatter."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Linear(D, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.scores(x.view(-1, D))
        mask = torch.zeros_like(scores).scatter_(1, scores.argmax(-1, keepdim=True), 1)
        routed: Tensor = (scores * mask).sum(-1, keepdim=True).view(*x.shape[:2], 1) * x
        return routed


class Learned(nn.Module):
    """Learned positions, added to the residual stream."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, D)
        self.spelling = spelling

    def forward(self, x: Tensor) -> Tensor:
        if self.spelling == "slice":
            rows = self.table.weight[: x.shape[1]]
        else:
            rows = self.table(torch.arange(x.shape[1]))
        return rows.expand(x.shape[0], -1, -1)


class Planted(nn.Module):
    """A mixer given by a function of the residual stream [batch, time, D]."""

    def __init__(self, function: Callable[[Tensor], Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return self.function(x)


def last_only(x: Tensor) -> Tensor:
    return x[:, -1:].expand_as(x)
