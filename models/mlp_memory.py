"""MLP Memory: a network without attention that imitates retrieval, beside a language model.

The memory maps h_t, what goes into the last MLP of a language model, to the distribution of the
next token that a search among the h of a whole corpus would give (kNN-LM):

    x_0 = h,   x_{l+1} = x_l + MLP(Norm(x_l)),   logits = W Norm(x_L)

Joint, log p = log((1 - w) p_LM + w p_memory), p_memory = softmax(logits / temperature), in log
space; w = 0 is the language model alone, w = 1 the memory.  `join` makes one module of a language
model, as its library builds it, and a memory.

Source: Wei et al. 2025, arXiv:2508.01832.
"""

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.errors import SourceError

from .layout import CheckpointLayout, Shapes, Values, read_value, refuse, renamed
from .model import Joint, Model
from .parts.imitated_search import Imitation
from .parts.language_layers import RMSNorm, SwiGLU

KINDS = ("gpt2", "llama")


@dataclass(frozen=True, kw_only=True)
class Config:
    """`kind` says which language model's MLPs and norms it has: gpt2 (GELU) or llama (SwiGLU).

    `input_size` is the width of the language model, where it is another than `hidden_size`.
    """

    kind: str = "llama"
    vocab_size: int = 256
    hidden_size: int = 64
    intermediate_size: int = 128
    num_layers: int = 2
    norm_eps: float = 1e-6
    input_size: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; it should be {' or '.join(KINDS)}")


BYTES = Config(hidden_size=128, intermediate_size=160, num_layers=3)  # beside llama's tiny preset


class Gelu(nn.Module):
    """The MLP of GPT-2."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(size, hidden), nn.Linear(hidden, size)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., size]."""
        y: Tensor = self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))
        return y


class Block(nn.Module):
    """x + MLP(Norm(x))."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm = _norm(config)
        mlp = Gelu if config.kind == "gpt2" else SwiGLU
        self.mlp = mlp(config.hidden_size, config.intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., size]."""
        y: Tensor = x + self.mlp(self.norm(x))
        return y


class Memory(nn.Module):
    """The network of MLPs."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        size = config.hidden_size
        self.embedding_transform: nn.Module = nn.Identity()
        if config.input_size not in (None, size):
            self.embedding_transform = nn.Linear(config.input_size or size, size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = _norm(config)
        self.lm_head = nn.Linear(size, config.vocab_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits [B, T, vocab] of hidden [B, T, width]: each token by itself."""
        x: Tensor = self.embedding_transform(hidden)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.lm_head(self.norm(x))
        return logits


def _norm(config: Config) -> nn.Module:
    kind = nn.LayerNorm if config.kind == "gpt2" else RMSNorm
    return kind(config.hidden_size, config.norm_eps)


class Mixture(nn.Module):
    """A language model and its memory.

    `tap` is the path of the module in the language model whose input the memory reads.
    """

    def __init__(self, language_model: nn.Module, memory: Memory, tap: str) -> None:
        super().__init__()
        self.language_model, self.memory = language_model, memory
        self.tap = tap

    def forward(self, input_ids: Tensor, weight: Tensor, temperature: Tensor) -> Tensor:
        """Log-probabilities [B, T, vocab] of the token after each of input_ids [B, T].

        Args:
            input_ids: as the language model takes them.
            weight: [B], of the memory, from 0 to 1.
            temperature: [B], by which the memory's logits are divided.
        """
        with _tapped(self.language_model.get_submodule(self.tap)) as taken:
            given = self.language_model(input_ids=input_ids)
        logits = given["logits"] if isinstance(given, Mapping) else given
        memory = self.memory(taken[0]) / temperature[:, None, None]
        return mixed(logits.log_softmax(-1), memory.log_softmax(-1), weight[:, None, None])


@contextmanager
def _tapped(module: nn.Module) -> Any:
    """What goes into `module` while the context is open."""
    taken: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _module, given: taken.append(given[0]))
    try:
        yield taken
    finally:
        hook.remove()


def mixed(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """Log((1 - w) exp(first) + w exp(second)); one of them where w is 0 or 1."""
    w = weight.clamp(1e-30, 1 - 1e-7)
    a, b = first + torch.log1p(-w), second + torch.log(w)
    high, low = torch.maximum(a, b), torch.minimum(a, b)
    both = high + torch.log1p(torch.exp(low - high))
    return torch.where(weight <= 0, first, torch.where(weight >= 1, second, both))


def last_mlp(model: nn.Module) -> str:
    """The path of the MLP of the last of a language model's blocks: its longest list of modules.

    Raises:
        SourceError: the last block has no module called mlp.
    """
    stacks = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    if not stacks:
        raise SourceError(f"{type(model).__name__} has no list of blocks to tap the last one of.")
    name, blocks = max(stacks, key=lambda stack: len(stack[1]))
    path = f"{name}.{len(blocks) - 1}.mlp"
    if path not in dict(model.named_modules()):
        raise SourceError(
            f"The last block of {type(model).__name__}, {name}.{len(blocks) - 1}, has no module "
            "mlp, whose input a memory reads."
        )
    return path


def join(parts: Mapping[str, nn.Module]) -> Mixture:
    """One module of a language model and its memory.

    Raises:
        SourceError: they do not belong together.
    """
    model, memory = parts["language_model"], parts["memory"]
    if not isinstance(memory, Memory):
        raise SourceError(f"The memory is a {type(memory).__name__}, and should be an MLP Memory.")
    tap = last_mlp(model)
    table = model.get_submodule(tap)
    width = next(weight.shape for weight in table.parameters() if weight.ndim == 2)
    wanted = memory.config.input_size or memory.config.hidden_size
    if wanted not in width:
        raise SourceError(
            f"The memory reads states of {wanted} entries, the MLP {tap} of the language model has "
            f"weights of {tuple(width)}: they were not trained together."
        )
    heads = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    tokens = max((head.num_embeddings for head in heads), default=0)
    if tokens != memory.config.vocab_size:
        raise SourceError(
            f"The memory knows {memory.config.vocab_size} tokens, the language model {tokens}: "
            "resize one, or take those that were trained together."
        )
    return Mixture(model, memory, tap)


def build(config: Config) -> Memory:
    """The memory of `config`, freshly initialised."""
    return Memory(config)


def inputs(config: Config, batch: int, time: int, generator: torch.Generator) -> dict[str, Tensor]:
    """States of a language model."""
    width = config.input_size or config.hidden_size
    return {"hidden": torch.randn((batch, time, width), generator=generator)}


def conditions(batch: int, generator: torch.Generator) -> dict[str, Tensor]:
    """The memory's weight and temperature, for each row."""
    weight = torch.rand(batch, generator=generator)
    return {"weight": weight, "temperature": 0.5 + torch.rand(batch, generator=generator)}


def _gpt2(values: Values, shapes: Shapes) -> dict[str, Any]:
    refuse(values, {"activation_function": ("gelu_new", "gelu_pytorch_tanh")})
    vocab, size = shapes["lm_head.weight"]
    return {
        "kind": "gpt2",
        "vocab_size": vocab,
        "hidden_size": size,
        "intermediate_size": shapes["h.0.mlp.c_fc.weight"][1],
        "num_layers": read_value(values, "n_layer", int, _count(shapes, "h.")),
        "norm_eps": read_value(values, "layer_norm_epsilon", float, 1e-5),
        "input_size": _input(shapes),
    }


def _llama(values: Values, shapes: Shapes) -> dict[str, Any]:
    refuse(values, {"hidden_act": ("silu",), "mlp_bias": (False,)})
    vocab, size = shapes["lm_head.weight"]
    return {
        "kind": "llama",
        "vocab_size": vocab,
        "hidden_size": size,
        "intermediate_size": shapes["layers.0.mlp.gate_proj.weight"][0],
        "num_layers": read_value(values, "num_hidden_layers", int, _count(shapes, "layers.")),
        "norm_eps": read_value(values, "rms_norm_eps", float, 1e-6),
        "input_size": _input(shapes),
    }


def _count(shapes: Shapes, prefix: str) -> int:
    return len({n.split(".")[1] for n in shapes if n.startswith(prefix)})


def _input(shapes: Shapes) -> int | None:
    name = "embedding_transform.weight"
    return shapes[name][1] if name in shapes else None


def _weights(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    with torch.device("meta"):
        ours = list(build(config).state_dict())
    found = renamed(tensors, {name: _official(name, config.kind) for name in ours})
    turned = ("c_fc.weight", "c_proj.weight")  # which GPT-2 keeps by inputs
    return {name: x.T if name.endswith(turned) else x for name, x in found.items()}


def _official(name: str, kind: str) -> str:
    if kind == "llama":
        return name.replace(".norm.", ".input_layernorm.")
    if name.startswith("norm."):
        return name.replace("norm.", "ln_f.", 1)
    return name.replace("layers.", "h.", 1).replace(".norm.", ".ln_1.")


SOURCE = "Binn0/MLPMemory @ 5b04efb, models/"
LAYOUTS = (
    CheckpointLayout(
        name="gpt2",
        source=f"{SOURCE}mlpGPT2.py",
        fits=lambda _values, keys: (
            {"h.0.mlp.c_fc.weight", "h.0.ln_1.weight", "lm_head.weight"} <= set(keys)
            and not any(".attn." in key for key in keys)
        ),
        configure=_gpt2,
        weights=_weights,
    ),
    CheckpointLayout(
        name="llama",
        source=f"{SOURCE}mlpLlama.py, mlpMistral.py",
        fits=lambda _values, keys: (
            {"layers.0.mlp.gate_proj.weight", "layers.0.input_layernorm.weight", "lm_head.weight"}
            <= set(keys)
            and not any(".self_attn." in key for key in keys)
        ),
        configure=_llama,
        weights=_weights,
    ),
)

MLP_MEMORY = Model(
    name="mlp-memory",
    summary="MLPs that imitate retrieval, mixed with a language model in log space.",
    config=Config,
    build=build,
    inputs=inputs,
    presets={"tiny": Config(), "gpt2": Config(kind="gpt2", norm_eps=1e-5), "bytes": BYTES},
    recipe=Imitation(tap=last_mlp),
    layouts=LAYOUTS,
    joint=Joint(parts=("language_model", "memory"), join=join, conditions=conditions),
    source="arXiv:2508.01832",
)
