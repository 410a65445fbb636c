"""GraphGPS: messages along edges beside attention over all nodes, summed, then a small network.

A layer is x' = norm(h + ff(h)), h = norm(x + local(x, e)) + norm(x + attention(x)), where norm is
batch normalisation and e the features of the edges.  Local parts: GINE, gated GCN, GAT; attention:
softmax, or the linear one of Performer (Choromanski et al. 2020, arXiv:2009.14794), whose cost is
linear in the nodes.  What tells nodes apart by their place (random walks, eigenvectors of the
Laplacian) is an input, see `intaglio.runtime.graph_batches`.

Several graphs are one call: node i is the `place[i]`-th of graph `batch[i]`, and row g of
`slot_mask` says how many nodes graph g has.  Attention is computed in rows of that shape.

Source: Rampasek et al. 2022, arXiv:2205.12454; github.com/rampasek/GraphGPS.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.errors import SourceError

from .layout import CheckpointLayout
from .model import Model
from .parts.graph_attention import LinearAttention, SoftmaxAttention
from .parts.graphgps_checkpoints import configure, fits, weights
from .parts.messages import GINE, GatedGCN, GraphAttention, segment_sum
from .training import Drawn

WORDS = {
    "local": ("gine", "gated-gcn", "gat", "none"),
    "attention": ("softmax", "linear", "none"),
    "encoding": ("random-walk", "laplacian", "none"),
    "pooling": ("add", "mean"),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """`node_types` and `edge_types` are what the integers of nodes and edges count up to.

    `local` is gine, gated-gcn, gat or none; `attention` is softmax, linear or none.  `encoding` is
    random-walk (`encoding_size` steps), laplacian (as many eigenvectors) or none, and
    `encoding_width` the part of the features of a node that it fills.  `encoding_layers` is 0 for
    a linear map of random walks, else the depth of a network.  `random_features` of linear
    attention are int(h log h) for a head of h where it is null; `head_size` is that of linear
    attention, whose heads need not fill `hidden_size`.
    """

    node_types: int = 28
    edge_types: int = 4
    hidden_size: int = 64
    num_layers: int = 10
    num_heads: int = 4
    outputs: int = 1
    local: str = "gine"
    attention: str = "softmax"
    encoding: str = "random-walk"
    encoding_size: int = 20
    encoding_width: int = 28
    encoding_layers: int | None = None
    encoding_norm: bool = True
    pooling: str = "add"
    head_size: int = 64
    random_features: int | None = None


TINY = Config(
    node_types=4,
    edge_types=2,
    hidden_size=16,
    num_layers=3,
    encoding_size=8,
    encoding_width=6,
)


class RandomWalks(nn.Module):
    """Chances to be back after each number of steps, normalised and mapped."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        size, width = config.encoding_size, config.encoding_width
        if config.encoding_norm:
            self.raw_norm = nn.BatchNorm1d(size)
        if config.encoding_layers is None:
            self.pe_encoder: nn.Module = nn.Linear(size, width)
        else:
            self.pe_encoder = _network(size, width, config.encoding_layers)

    def forward(self, encoding: Tensor) -> Tensor:
        """[N, width] of encoding [N, size]."""
        if hasattr(self, "raw_norm"):
            encoding = self.raw_norm(encoding)
        y: Tensor = self.pe_encoder(encoding)
        return y


class Eigenvectors(nn.Module):
    """A network over pairs (entry of an eigenvector, eigenvalue), summed over the eigenvectors."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, layers = config.encoding_width, config.encoding_layers or 1
        if config.encoding_norm:
            self.raw_norm = nn.BatchNorm1d(config.encoding_size)
        inner = width if layers == 1 else 2 * width
        self.linear_A = nn.Linear(2, inner)
        steps: list[nn.Module] = [nn.ReLU()]
        for _ in range(layers - 2):
            steps += [nn.Linear(inner, inner), nn.ReLU()]
        if layers > 1:
            steps += [nn.Linear(inner, width), nn.ReLU()]
        self.pe_encoder = nn.Sequential(*steps)

    def forward(self, encoding: Tensor) -> Tensor:
        """[N, width] of encoding [N, size, 2], where what is not there is no number."""
        absent = encoding.isnan()
        encoding = encoding.masked_fill(absent, 0.0)
        if hasattr(self, "raw_norm"):
            encoding = self.raw_norm(encoding)
        y: Tensor = self.pe_encoder(self.linear_A(encoding))
        return y.masked_fill(absent[..., :1], 0.0).sum(1)


def _network(size: int, width: int, layers: int) -> nn.Sequential:
    widths = [size, *[2 * width] * (layers - 1), width]
    steps: list[nn.Module] = []
    for i in range(layers):
        steps += [nn.Linear(widths[i], widths[i + 1]), nn.ReLU()]
    return nn.Sequential(*steps)


class Table(nn.Module):
    """A vector for each kind of node or edge."""

    def __init__(self, kinds: int, size: int) -> None:
        super().__init__()
        self.encoder = nn.Embedding(kinds, size)

    def forward(self, kind: Tensor) -> Tensor:
        """Look kinds [N] up."""
        y: Tensor = self.encoder(kind)
        return y


class NodeEncoder(nn.Module):
    """The kind of a node and its encoding, next to each other."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        kinds = {"random-walk": RandomWalks, "laplacian": Eigenvectors}
        self.encoder1 = Table(config.node_types, config.hidden_size - config.encoding_width)
        self.encoder2 = kinds[config.encoding](config)

    def forward(self, x: Tensor, encoding: Tensor) -> Tensor:
        """[N, hidden] of kinds x [N]."""
        return torch.cat((self.encoder1(x), self.encoder2(encoding)), 1)


class Encoder(nn.Module):
    """What nodes and edges are, as vectors."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        plain = config.encoding == "none"
        self.node_encoder: nn.Module = (
            Table(config.node_types, config.hidden_size) if plain else NodeEncoder(config)
        )
        self.edge_encoder = Table(config.edge_types, config.hidden_size)


@dataclass(frozen=True)
class Rows:
    """Where the nodes stand in rows of one graph each: batch [N], place [N], mask [G, C]."""

    batch: Tensor
    place: Tensor
    mask: Tensor

    def of_graphs(self, x: Tensor) -> Tensor:
        """[G, C, size] of nodes x [N, size], with zeros where there is no node."""
        graphs, most = self.mask.shape
        empty = x.new_zeros(graphs * most, x.shape[1])
        return empty.index_add(0, self.batch * most + self.place, x).view(graphs, most, -1)

    def of_nodes(self, x: Tensor) -> Tensor:
        """[N, size] of x [G, C, size]."""
        return x[self.batch, self.place]


class Layer(nn.Module):
    """Messages along edges, attention over nodes, a feed-forward network."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        size = config.hidden_size
        self.local_model = _local(config)
        if self.local_model is not None:
            self.norm1_local = nn.BatchNorm1d(size)
        self.self_attn = _attention(config)
        if self.self_attn is not None:
            self.norm1_attn = nn.BatchNorm1d(size)
        self.ff_linear1 = nn.Linear(size, 2 * size)
        self.ff_linear2 = nn.Linear(2 * size, size)
        self.norm2 = nn.BatchNorm1d(size)

    def forward(
        self, x: Tensor, edge_index: Tensor, e: Tensor, rows: Rows
    ) -> tuple[Tensor, Tensor]:
        """Map nodes x [N, size] and edges e [E, size]."""
        parts = []
        if self.local_model is not None:
            y, e = self.local_model(x, edge_index, e)
            parts.append(self.norm1_local(x + y))
        if self.self_attn is not None:
            y = rows.of_nodes(self.self_attn(rows.of_graphs(x), rows.mask))
            parts.append(self.norm1_attn(x + y))
        h = sum(parts[1:], parts[0])
        return self.norm2(h + self.ff_linear2(self.ff_linear1(h).relu())), e


def _local(config: Config) -> nn.Module | None:
    if config.local == "none":
        return None
    if config.local == "gat":
        return GraphAttention(config.hidden_size, config.num_heads)
    return {"gine": GINE, "gated-gcn": GatedGCN}[config.local](config.hidden_size)


def _attention(config: Config) -> nn.Module | None:
    size, heads = config.hidden_size, config.num_heads
    if config.attention == "none":
        return None
    if config.attention == "softmax":
        return SoftmaxAttention(size, heads)
    return LinearAttention(size, heads, config.head_size, config.random_features)


class Head(nn.Module):
    """A network over each graph's sum or mean of nodes, whose width halves twice."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        size = config.hidden_size
        widths = [size, size // 2, size // 4, config.outputs]
        self.mean = config.pooling == "mean"
        self.FC_layers = nn.ModuleList(nn.Linear(widths[i], widths[i + 1]) for i in range(3))

    def forward(self, x: Tensor, rows: Rows) -> Tensor:
        """[G, outputs] of nodes x [N, size]."""
        y = segment_sum(x, rows.batch, rows.mask)
        if self.mean:
            y = y / rows.mask.sum(1, keepdim=True).clamp_min(1)
        for layer in self.FC_layers[:-1]:
            y = layer(y).relu()
        out: Tensor = self.FC_layers[-1](y)
        return out


class GraphGPS(nn.Module):
    """Encoders, layers, a head."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.post_mp = Head(config)
        self.encoded = config.encoding != "none"

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_attr: Tensor,
        batch: Tensor,
        place: Tensor,
        slot_mask: Tensor,
        encoding: Tensor | None = None,
    ) -> Tensor:
        """What is predicted of each graph [G, outputs].

        Args:
            x: kinds of the nodes [N].
            edge_index: the nodes that each edge comes from and goes to [2, E].
            edge_attr: kinds of the edges [E].
            batch: the graph that each node is of [N].
            place: which node of its graph each one is [N].
            slot_mask: whether a graph has so many nodes [G, C].
            encoding: places of the nodes [N, size], or [N, size, 2] of eigenvectors.
        """
        nodes = self.encoder.node_encoder
        h = nodes(x, encoding) if self.encoded else nodes(x)
        e = self.encoder.edge_encoder(edge_attr)
        rows = Rows(batch, place, slot_mask)
        for layer in self.layers:
            h, e = layer(h, edge_index, e, rows)
        y: Tensor = self.post_mp(h, rows)
        return y


def build(config: Config) -> GraphGPS:
    """The module of `config`, freshly initialised.

    Raises:
        SourceError: a word of the config is none of those that there are.
    """
    for field, words in WORDS.items():
        if getattr(config, field) not in words:
            raise SourceError(
                f"The config of the model 'graphgps' has {field} = {getattr(config, field)!r}; it "
                f"should be one of: {', '.join(words)}."
            )
    return GraphGPS(config)


def inputs(config: Config, batch: int, time: int, generator: torch.Generator) -> dict[str, Tensor]:
    """`batch` random graphs of up to `time` nodes, each node with about three edges into it."""
    counts = torch.randint(1, time + 1, (batch,), generator=generator)
    counts[0] = time
    nodes, first = int(counts.sum()), counts.cumsum(0) - counts
    graph = torch.repeat_interleave(torch.arange(batch), counts)
    target = torch.randint(nodes, (3 * nodes,), generator=generator)
    drawn = torch.rand(3 * nodes, generator=generator)
    source = first[graph[target]] + (drawn * counts[graph[target]]).long()
    found = {
        "x": torch.randint(config.node_types, (nodes,), generator=generator),
        "edge_index": torch.stack((source, target)),
        "edge_attr": torch.randint(config.edge_types, (3 * nodes,), generator=generator),
        "batch": graph,
        "place": torch.arange(nodes) - first[graph],
        "slot_mask": torch.arange(time) < counts[:, None],
    }
    if config.encoding != "none":
        ends = (2,) if config.encoding == "laplacian" else ()
        found["encoding"] = torch.rand(nodes, config.encoding_size, *ends, generator=generator)
    return found


def axes(config: Config) -> dict[str, str]:
    """The dimensions of the inputs; a graph may have no edges."""
    found = {
        "x": "nodes",
        "edge_index": "2xedges=0..",
        "edge_attr": "edges",
        "batch": "nodes",
        "place": "nodes",
        "slot_mask": "graphsxslots",
    }
    if config.encoding != "none":
        ends = "x2" if config.encoding == "laplacian" else ""
        found["encoding"] = f"nodesx{config.encoding_size}{ends}"
    return found


def _counted(module: nn.Module, batch: int, generator: torch.Generator) -> Tensor:
    """Of the share of edges whose ends are of one type, in each graph."""
    given = inputs(TINY, batch, 12, generator)
    x, (source, target), graph = given["x"], given["edge_index"], given["batch"]
    none = torch.zeros(batch)
    alike = none.index_add(0, graph[target], (x[source] == x[target]).float())
    share = alike / none.index_add(0, graph[target], torch.ones(len(target))).clamp_min(1)
    return F.l1_loss(module(**given)[:, 0], share)


GPS = CheckpointLayout(
    name="GraphGPS",
    source="github rampasek/GraphGPS @ 28015707cbab7f8ad72bed0ee872d068ea59c94b, "
    "graphgps/network/gps_model.py, layer/gps_layer.py, encoder/",
    fits=fits,
    configure=configure,
    weights=weights,
)


GRAPHGPS = Model(
    name="graphgps",
    summary="GraphGPS: messages along edges beside attention over all nodes of a graph.",
    config=Config,
    build=build,
    inputs=inputs,
    axes=axes,
    presets={"tiny": TINY},
    recipe=Drawn(loss=_counted, unit="of a share, in the mean", steps=600),
    layouts=(GPS,),
    source="arXiv:2205.12454",
)
