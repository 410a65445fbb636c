"""A BERT encoder whose words may be mixtures: the embedding is a product with soft one-hots.

Names are those of the checkpoints that people have (``embeddings.word_embeddings.weight``,
``encoder.layer.0.attention.self.query.weight``).  Source: Devlin et al. 2018, arXiv:1810.04805.
"""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .language_layers import by_head


class Sizes(Protocol):
    """What the config of an encoder says."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def max_positions(self) -> int: ...
    @property
    def norm_eps(self) -> float: ...


class Embeddings(nn.Module):
    """The sum of what a word, its position and its segment, which is the first, are."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(sizes.vocab_size, sizes.hidden_size)
        self.position_embeddings = nn.Embedding(sizes.max_positions, sizes.hidden_size)
        self.token_type_embeddings = nn.Embedding(2, sizes.hidden_size)
        self.LayerNorm = nn.LayerNorm(sizes.hidden_size, sizes.norm_eps)

    def forward(self, words: Tensor) -> Tensor:
        """Embed words [B, T, vocab], each a distribution over the vocabulary."""
        x = words @ self.word_embeddings.weight
        x = x + self.position_embeddings.weight[: words.shape[1]]
        y: Tensor = self.LayerNorm(x + self.token_type_embeddings.weight[0])
        return y


class SelfAttention(nn.Module):
    """Attention of every token to every other one."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads = sizes.num_heads
        self.query = nn.Linear(sizes.hidden_size, sizes.hidden_size)
        self.key = nn.Linear(sizes.hidden_size, sizes.hidden_size)
        self.value = nn.Linear(sizes.hidden_size, sizes.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Mix x [B, T, hidden] along T."""
        q, k, v = (
            by_head(part(x), self.heads).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        y: Tensor = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
        return y


class AddNorm(nn.Module):
    """LayerNorm(x + W y): what follows attention and the feed-forward layer."""

    def __init__(self, sizes: Sizes, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, sizes.hidden_size)
        self.LayerNorm = nn.LayerNorm(sizes.hidden_size, sizes.norm_eps)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """Of y [B, T, width] and the stream x [B, T, hidden]."""
        normal: Tensor = self.LayerNorm(self.dense(y) + x)
        return normal


class Layer(nn.Module):
    """Attention and a feed-forward layer with GELU, each normalised behind its residual."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attention = nn.ModuleDict(
            {"self": SelfAttention(sizes), "output": AddNorm(sizes, sizes.hidden_size)}
        )
        self.intermediate = nn.ModuleDict(
            {"dense": nn.Linear(sizes.hidden_size, sizes.intermediate_size)}
        )
        self.output = AddNorm(sizes, sizes.intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, T, hidden]."""
        x = self.attention["output"](self.attention["self"](x), x)
        y: Tensor = self.output(F.gelu(self.intermediate["dense"](x)), x)
        return y


class Bert(nn.Module):
    """Embeddings and layers; without the pooler, which nothing here reads."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embeddings = Embeddings(sizes)
        self.encoder = nn.ModuleDict(
            {"layer": nn.ModuleList(Layer(sizes) for _ in range(sizes.num_layers))}
        )

    def forward(self, words: Tensor) -> Tensor:
        """Hidden states [B, T, hidden] of words [B, T, vocab]."""
        x: Tensor = self.embeddings(words)
        layers: nn.Module = self.encoder["layer"]
        for layer in layers.children():
            x = layer(x)
        return x


def one_hot(ids: Tensor, size: int, like: Tensor) -> Tensor:
    """Rows of the identity [..., size] in the dtype of `like`."""
    rows: Tensor = torch.eye(size, dtype=like.dtype, device=like.device)[ids]
    return rows
