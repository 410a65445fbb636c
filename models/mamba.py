"""Mamba and Mamba-2: language models of selective state spaces, after the library `mamba_ssm`.

Each layer is x + mixer(norm(x)).  Mamba's mixer, for channel d with N states:

    [x | z] = W_in u,   x = silu(conv(x)),   [r | B | C] = W_x x,   dt = softplus(W_dt r + b),
    h_t[d] = exp(-dt exp(A)[d]) h_{t-1}[d] + dt B x[d],   y = C h + D x,   out = W_out (y silu(z));

Mamba-2's is that of `parts.mamba2`.  Parameters bear the names of the library.

Source: Gu and Dao 2023, arXiv:2312.00752; Dao and Gu 2024, arXiv:2405.21060.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.errors import SourceError
from intaglio.ops import diagonal_ssm

from .layout import CheckpointLayout, Shapes, Values, read_value, refuse, renamed
from .model import Model, token_ids
from .parts import fla_mamba
from .parts.language_layers import RMSNorm
from .parts.mamba2 import Mamba2
from .training import TrainingRecipe

KINDS = ("mamba", "mamba2")


@dataclass(frozen=True, kw_only=True)
class Config:
    """`kind` is that of all layers; `step_rank` is mamba's, `head_size` and `groups` mamba2's."""

    kind: str = "mamba2"
    vocab_size: int = 256
    hidden_size: int = 128
    inner_size: int = 256
    num_layers: int = 4
    state_size: int = 16
    conv_size: int = 4
    step_rank: int = 8
    head_size: int = 64
    groups: int = 1
    norm_eps: float = 1e-5
    tie_embeddings: bool = True


TINY = Config(hidden_size=64, inner_size=128, head_size=16)
TINY_1 = Config(kind="mamba", hidden_size=64, inner_size=128, step_rank=4)


class Mamba(nn.Module):
    """A selective scan of each channel behind a short convolution."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        size, inner, states = config.hidden_size, config.inner_size, config.state_size
        self.sizes = (config.step_rank, states, states)
        self.in_proj = nn.Linear(size, 2 * inner, bias=False)
        taps = config.conv_size
        self.conv1d = nn.Conv1d(inner, inner, taps, groups=inner, padding=taps - 1)
        self.x_proj = nn.Linear(inner, sum(self.sizes), bias=False)
        self.dt_proj = nn.Linear(config.step_rank, inner)
        self.A_log = nn.Parameter(torch.arange(1, states + 1).float().log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, size, bias=False)
        steps = torch.logspace(-3, -1, inner)
        with torch.no_grad():
            self.dt_proj.bias.copy_(steps + torch.log(-torch.expm1(-steps)))

    def forward(self, u: Tensor) -> Tensor:
        """Mix u [B, T, size] along T."""
        x, z = self.in_proj(u).chunk(2, -1)
        x = F.silu(self.conv1d(x.mT)[..., : u.shape[1]].mT)
        r, b, c = torch.split(self.x_proj(x), [*self.sizes], dim=-1)
        y, _ = diagonal_ssm(x, -self.A_log.exp(), b, c, F.softplus(self.dt_proj(r)))
        out: Tensor = self.out_proj((y + self.D * x) * F.silu(z))
        return out


class Layer(nn.Module):
    """x + mixer(norm(x))."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mixer = Mamba(config) if config.kind == "mamba" else _mamba2(config)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, T, size]."""
        y: Tensor = x + self.mixer(self.norm(x))
        return y


class Backbone(nn.Module):
    """Token embedding, layers, a norm."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm_f = RMSNorm(config.hidden_size, config.norm_eps)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, input_ids: Tensor) -> Tensor:
        """What the tokens input_ids [B, T] become, [B, T, size]."""
        x = self.embedding(input_ids)
        for layer in self.layers:
            x = layer(x)
        y: Tensor = self.norm_f(x)
        return y


class MambaModel(nn.Module):
    """The backbone and its logits."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.backbone = Backbone(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.backbone.embedding.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits [B, T, vocab] of the token after each of input_ids [B, T]."""
        logits: Tensor = self.lm_head(self.backbone(input_ids))
        return logits


def _mamba2(config: Config) -> Mamba2:
    return Mamba2(
        config.hidden_size,
        inner=config.inner_size,
        head_size=config.head_size,
        state_size=config.state_size,
        conv_size=config.conv_size,
        eps=config.norm_eps,
        groups=config.groups,
    )


def build(config: Config) -> MambaModel:
    """The module of `config`, freshly initialised.

    Raises:
        ValueError: the kind is none that is known, or heads or groups do not share evenly.
    """
    if config.kind not in KINDS:
        raise ValueError(f"kind is {config.kind!r}, not {' or '.join(KINDS)}")
    heads, rest = divmod(config.inner_size, config.head_size)
    if config.kind == "mamba2" and (rest or heads % config.groups):
        raise ValueError(
            f"inner_size {config.inner_size} in heads of {config.head_size} and "
            f"{config.groups} groups"
        )
    return MambaModel(config)


READ = {  # of ssm_cfg, by layer: what is read, and what decides the first weights or speed alone
    "Mamba1": {"d_state", "d_conv", "expand", "dt_rank", "use_fast_path"},
    "Mamba2": {"d_state", "d_conv", "expand", "headdim", "ngroups", "chunk_size", "conv_init"}
    | {"use_mem_eff_path", "A_init_range"},
}
FIRST = {"layer", "dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor"}
AS_IT_IS = {  # of ssm_cfg: options that change what is computed, and the value that is known
    "bias": (False,),
    "conv_bias": (True,),
    "rmsnorm": (True,),
    "norm_before_gate": (False,),
    "D_has_hdim": (False,),
    "d_ssm": (None,),
}
IMMATERIAL = (  # sizes that the weights have as well, and how sums are taken
    *("attn_cfg", "d_model", "fused_add_norm", "n_layer", "pad_vocab_size_multiple"),
    *("residual_in_fp32", "vocab_size"),
)
EMBEDDING, FIRST_LAYER = "backbone.embedding.weight", "backbone.layers.0.mixer."


def _fits(values: Values, keys: Collection[str]) -> bool:
    """The library's config has no model_type, which others add; transformers' has hidden_size."""
    others = "model_type" in values and ("ssm_cfg" not in values or "hidden_size" in values)
    return not others and EMBEDDING in keys and f"{FIRST_LAYER}A_log" in keys


def _configure(values: Values, shapes: Shapes) -> dict[str, Any]:
    own = read_value(values, "ssm_cfg", dict, {})
    refuse(values, {"rms_norm": (True,), "d_intermediate": (0,)})
    if values.get("attn_layer_idx"):
        raise SourceError("its config has layers of attention (attn_layer_idx)")
    vocabulary, size = shapes[EMBEDDING]
    inner = shapes[f"{FIRST_LAYER}out_proj.weight"][1]
    decays, taps = (shapes[f"{FIRST_LAYER}{name}"] for name in ("A_log", "conv1d.weight"))
    second = len(decays) == 1
    _check_options(values, own, "Mamba2" if second else "Mamba1")
    found: dict[str, Any] = {
        "kind": "mamba2" if second else "mamba",
        "vocab_size": vocabulary,
        "hidden_size": size,
        "inner_size": inner,
        "num_layers": len({n.split(".")[2] for n in shapes if n.startswith("backbone.layers.")}),
        "conv_size": taps[2],
        "tie_embeddings": read_value(values, "tie_embeddings", bool, True),
    }
    if not second:
        rank = shapes[f"{FIRST_LAYER}dt_proj.weight"][1]
        return found | {"state_size": decays[1], "step_rank": rank}
    groups = read_value(own, "ngroups", int, 1)
    states, rest = divmod(taps[0] - inner, 2 * max(groups, 1))
    wanted = read_value(own, "d_state", int, 128)
    if rest or states != wanted or inner % decays[0]:
        raise SourceError(
            f"its config has ngroups = {groups} and d_state = {wanted}, which {list(taps)}, the "
            f"shape of {FIRST_LAYER}conv1d.weight, does not allow"
        )
    return found | {"state_size": states, "head_size": inner // decays[0], "groups": groups}


def _check_options(values: Values, own: Values, layer: str) -> None:
    """Hold `ssm_cfg` to what is known of a layer."""
    if read_value(own, "layer", str, "Mamba1") != layer and values:
        raise SourceError(f"its config has layer = {own.get('layer')!r}, its weights are {layer}")
    if layer == "Mamba2" and not values:
        raise SourceError(
            "nothing tells ngroups: pass --config with the config.json that came with the weights"
        )
    refuse(own, AS_IT_IS)
    unknown = [name for name in own if name not in READ[layer] | FIRST | AS_IT_IS.keys()]
    if unknown:
        raise SourceError(f"its config has {unknown[0]} in ssm_cfg, which is not known")


def _weights(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    with torch.device("meta"):
        names = {name: name for name in build(config).state_dict()}
    if config.tie_embeddings and "lm_head.weight" not in tensors:
        del names["lm_head.weight"]
    return renamed(tensors, names)


MAMBA = Model(
    name="mamba",
    summary="Mamba and Mamba-2: selective state spaces.",
    config=Config,
    build=build,
    inputs=token_ids,
    presets={"tiny": TINY, "tiny-1": TINY_1},
    recipe=TrainingRecipe(steps=600, time=128),
    source="arXiv:2312.00752, arXiv:2405.21060",
    layouts=(
        CheckpointLayout(
            name="mamba-ssm",
            source="github.com/state-spaces/mamba @ e9594ce1c732d97440f0332fdc43170a2294dbfa, "
            "mamba_ssm/models/mixer_seq_simple.py",
            fits=_fits,
            configure=_configure,
            weights=_weights,
            immaterial=IMMATERIAL,
        ),
        fla_mamba.layout(build),
    ),
)
