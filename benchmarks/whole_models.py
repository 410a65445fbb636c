"""Small models of whole inputs, one of each kind that people have: `MODELS` by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

Axes = Mapping[str, Sequence[int | str]]
HEAD = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TOWER = {**HEAD, "intermediate_size": 64}
SOUND = {
    "conv_dim": [16, 16], "conv_stride": [5, 2], "conv_kernel": [10, 3],
    "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What builds a module, examples of its inputs, and its axes where they are not guessed."""

    build: Callable[[], nn.Module]
    inputs: Mapping[str, Tensor]
    axes: Axes | None = None


class Residual(nn.Module):
    """Two convolutions beside what they take (He et al. 2015, arXiv:1512.03385)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(size, size, 3, padding=1) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(size) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[0](self.first(x)).relu()
        found: Tensor = (self.norms[1](self.second(y)) + x).relu()
        return found


def resnet() -> nn.Module:
    """A stem, four residual blocks, a head."""
    blocks = [Residual(16) for _ in range(4)]
    stem = nn.Conv2d(3, 16, 7, stride=2, padding=3)
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


class Inverted(nn.Module):
    """An inverted bottleneck (Sandler et al. 2018, arXiv:1801.04381)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        wide = 4 * size
        self.body = nn.Sequential(
            nn.Conv2d(size, wide, 1), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide), nn.BatchNorm2d(wide),
            nn.Hardswish(), nn.Conv2d(wide, size, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.body(x)
        return found


class UNet(nn.Module):
    """Down twice and up again (Ronneberger et al. 2015, arXiv:1505.04597)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.low = nn.Conv2d(16, 16, 3, padding=1)
        self.up = nn.ConvTranspose2d(16, 16, 2, stride=2)
        self.last = nn.ConvTranspose2d(32, 8, 2, stride=2)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        a = self.first(image).relu()
        b = self.second(F.max_pool2d(a, 2)).relu()
        c = self.low(F.max_pool2d(b, 2)).relu()
        d = torch.cat((self.up(c), b), 1)
        found: Tensor = self.head(torch.cat((self.last(d).relu(), a), 1))
        return found


class PointNet(nn.Module):
    """A network for each point, the largest over all (Qi et al. 2016, arXiv:1612.00593)."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Conv1d(3, 32, 1), nn.ReLU(), nn.Conv1d(32, 64, 1))
        self.head = nn.Linear(64, 10)

    def forward(self, points: Tensor) -> Tensor:
        found: Tensor = self.head(self.each(points).amax(2))
        return found


class Tabular(nn.Module):
    """Numbers beside categories, each with a table of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, 4) for size in (5, 7, 4))
        self.body = nn.Sequential(nn.Linear(18, 32), nn.ReLU(), nn.Linear(32, 3))

    def forward(self, numeric: Tensor, category: Tensor) -> Tensor:
        parts = [table(category[:, index]) for index, table in enumerate(self.tables)]
        found: Tensor = self.body(torch.cat((numeric, *parts), 1))
        return found


class Features(nn.Module):
    """A transformer over the columns of a table (Gorishniy et al. 2021, arXiv:2106.11959)."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 16)
        self.offsets: Tensor
        self.register_buffer("offsets", torch.tensor([0, 5, 12]))
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 2)

    def forward(self, category: Tensor) -> Tensor:
        found: Tensor = self.head(self.layer(self.table(category + self.offsets)).mean(1))
        return found


class DiT(nn.Module):
    """A block whose norms follow the time of diffusion (Peebles and Xie 2022, arXiv:2212.09748)."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = nn.Conv2d(4, 32, 2, stride=2)
        self.time = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 192))
        self.norm = nn.LayerNorm(32, elementwise_affine=False)
        self.mix = nn.MultiheadAttention(32, 2, batch_first=True)
        self.body = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.join = nn.ConvTranspose2d(32, 4, 2, stride=2)

    def forward(self, latents: Tensor, step: Tensor) -> Tensor:
        rates = torch.exp(-torch.arange(8, device=step.device))
        angles = step[:, None] * rates
        a, b, c, d, e, f = self.time(torch.cat((angles.sin(), angles.cos()), 1))[:, None].chunk(
            6, 2
        )
        grid = self.cut(latents)
        x = grid.flatten(2).mT
        y = self.norm(x) * (1 + a) + b
        x = x + c * self.mix(y, y, y)[0]
        x = x + f * self.body(self.norm(x) * (1 + d) + e)
        found: Tensor = self.join(x.mT.reshape(grid.shape))
        return found


class Encoder(nn.Module):
    """A transformer that hides padding."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(99, 32)
        layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 5)

    def forward(self, tokens: Tensor, padding: Tensor) -> Tensor:
        found: Tensor = self.head(self.body(self.table(tokens), src_key_padding_mask=padding))
        return found


class Tagger(nn.Module):
    """Both directions of a recurrent layer, as taggers have them."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU]) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 16)
        self.body = kind(16, 16, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(32, 7)

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.head(self.body(self.table(tokens))[0])
        return found


class Graph(nn.Module):
    """Messages along edges, summed (Gilmer et al. 2017, arXiv:1704.01212)."""

    def __init__(self) -> None:
        super().__init__()
        self.message, self.update = nn.Linear(11, 8), nn.Linear(16, 8)

    def forward(self, nodes: Tensor, edge_index: Tensor, edges: Tensor) -> Tensor:
        source, target = edge_index
        sent = self.message(torch.cat((nodes[source], edges), 1)).relu()
        heard = torch.zeros_like(nodes).index_add(0, target, sent)
        found: Tensor = self.update(torch.cat((nodes, heard), 1))
        return found


class GraphAttention(nn.Module):
    """Attention over all nodes where an adjacency allows it (Velickovic et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.score = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, nodes: Tensor, adjacency: Tensor) -> Tensor:
        x = self.mix(nodes)
        left, right = self.score(x).unbind(1)
        scores = F.leaky_relu(left[:, None] + right[None])
        found: Tensor = scores.masked_fill(~adjacency, -1e9).softmax(1) @ x
        return found


class Pooled(nn.Module):
    """Graphs of a batch, told apart by a number for each node."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, nodes: Tensor, owner: Tensor, graphs: Tensor) -> Tensor:
        sums = graphs.new_zeros(graphs.shape[0], 16)
        found: Tensor = self.head(sums.index_add(0, owner, self.layer(nodes).relu()) + graphs)
        return found


class Siamese(nn.Module):
    """Two pictures through one network."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        a, b = (self.body(x).flatten(1) for x in (left, right))
        return F.cosine_similarity(a, b)


class Spectrum(nn.Module):
    """Powers in decibels, and a network over them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(16, 16, 5, padding=2), nn.ReLU(), nn.Conv1d(16, 4, 1))

    def forward(self, power: Tensor) -> Tensor:
        found: Tensor = self.body(10 * power.log10()).mean(2)
        return found


def _library(name: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    """A class of transformers with random weights, which gives its first output."""

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = getattr(transformers, name)(getattr(transformers, config)(**options))

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.model(x, return_dict=True)[0]
            return found

    return First


def _drawn() -> dict[str, Tensor]:
    """Examples, always the same."""
    torch.manual_seed(0)
    return {
        "picture": torch.randn(2, 3, 32, 48),
        "square": torch.randn(2, 3, 32, 32),
        "gray": torch.randn(2, 1, 20, 20),
        "points": torch.randn(2, 3, 50),
        "latents": torch.randn(2, 4, 8, 8),
        "tokens": torch.randint(50, (2, 12)),
        "nodes": torch.randn(7, 8),
        "edges": torch.randint(7, (2, 12)),
        "sound": torch.randn(2, 400),
        "power": torch.rand(2, 16, 30) + 0.1,
    }


@dataclass(frozen=True)
class Cases:
    """All cases by name."""

    drawn: Mapping[str, Tensor] = field(default_factory=_drawn)

    def all(self) -> dict[str, Case]:
        """Build nothing yet; say what would be."""
        d = self.drawn
        free = ("batch", 3, "height", "width")
        nodes: Axes = {"nodes": ("nodes", 8)}
        return {
            "resnet": Case(resnet, {"input": d["picture"]}, {"input": free}),
            "mobilenet": Case(
                lambda: nn.Sequential(nn.Conv2d(3, 8, 3, 2), *(Inverted(8) for _ in range(3))),
                {"input": d["picture"]},
            ),
            "u-net": Case(
                UNet, {"image": d["picture"]},
                {"image": ("batch", 3, "height=4..64:4", "width=4..96:4")},
            ),
            "pointnet": Case(PointNet, {"points": d["points"]}, {"points": ("batch", 3, "points")}),
            "tabular": Case(
                Tabular, {"numeric": torch.randn(2, 6), "category": torch.randint(4, (2, 3))}
            ),
            "table transformer": Case(Features, {"category": torch.randint(4, (2, 3))}),
            "dit": Case(DiT, {"latents": d["latents"], "step": torch.tensor([3.0, 700.0])}),
            "encoder": Case(
                Encoder,
                {"tokens": d["tokens"],
                 "padding": torch.arange(12)[None] >= torch.tensor([12, 8])[:, None]},
            ),
            "tagger, lstm": Case(lambda: Tagger(nn.LSTM), {"tokens": d["tokens"]}),
            "tagger, gru": Case(lambda: Tagger(nn.GRU), {"tokens": d["tokens"]}),
            "messages": Case(
                Graph,
                {"nodes": d["nodes"], "edge_index": d["edges"], "edges": torch.randn(12, 3)},
                {**nodes, "edge_index": (2, "edges"), "edges": ("edges", 3)},
            ),
            "graph attention": Case(
                GraphAttention,
                {"nodes": d["nodes"], "adjacency": torch.rand(7, 7) > 0.5},
                {**nodes, "adjacency": ("nodes", "nodes")},
            ),
            "pooled graphs": Case(
                Pooled,
                {"nodes": d["nodes"], "owner": torch.tensor([0, 0, 1, 1, 1, 2, 2]),
                 "graphs": torch.randn(3, 16)},
                {**nodes, "owner": ("nodes",), "graphs": ("graphs", 16)},
            ),
            "siamese": Case(Siamese, {"left": d["gray"], "right": d["gray"] + 1}),
            "spectrum": Case(Spectrum, {"power": d["power"]}),
            "perceptron": Case(
                lambda: nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 2)),
                {"input": torch.randn(5, 8)},
            ),
            **_of_the_library(d),
        }  # fmt: skip


def _of_the_library(d: Mapping[str, Tensor]) -> dict[str, Case]:
    picture = {"image_size": 32, "patch_size": 8}
    x, sound = {"x": d["square"]}, {"x": d["sound"]}
    tokens = {"x": d["tokens"]}
    text = {**TOWER, "vocab_size": 50, "max_position_embeddings": 64}
    made: dict[str, tuple[str, str, dict[str, Any], dict[str, Tensor]]] = {
        "vit": ("ViTForImageClassification", "ViTConfig", {**TOWER, **picture}, x),
        "dinov2": ("Dinov2Model", "Dinov2Config", {**HEAD, **picture}, x),
        "swin": ("SwinForImageClassification", "SwinConfig",
                 {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2, 1],
                  "num_heads": [1, 2], "window_size": 4}, x),
        "convnext": ("ConvNextForImageClassification", "ConvNextConfig",
                     {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}, x),
        "beit": ("BeitModel", "BeitConfig", {**TOWER, **picture}, x),
        "segformer": ("SegformerForSemanticSegmentation", "SegformerConfig",
                      {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1],
                       "hidden_sizes": [8, 16], "patch_sizes": [3, 3], "strides": [2, 2],
                       "num_attention_heads": [1, 2], "mlp_ratios": [2, 2],
                       "decoder_hidden_size": 16}, x),
        "wav2vec2": ("Wav2Vec2Model", "Wav2Vec2Config", {**TOWER, **SOUND}, sound),
        "bert": ("BertModel", "BertConfig", text, tokens),
        "distilbert": ("DistilBertModel", "DistilBertConfig",
                       {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64,
                        "vocab_size": 50, "max_position_embeddings": 64}, tokens),
        "albert": ("AlbertModel", "AlbertConfig", {**text, "embedding_size": 16}, tokens),
        "electra": ("ElectraForTokenClassification", "ElectraConfig", text, tokens),
    }  # fmt: skip
    axes = {"x": ("batch", "samples=100..4000")}
    return {
        name: Case(_library(kind, config, **options), inputs, axes if inputs is sound else None)
        for name, (kind, config, options, inputs) in made.items()
    }
