"""Checkpoints of MoDeGPT: a layer is what their own code computes, and none of that code runs."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import intaglio
from intaglio.errors import SourceError
from intaglio.exporter.sources.load import load_source
from intaglio.models.modegpt import MODEGPT, TINY, NarrowAttention

HEADS, GROUPS, HEAD = 4, 2, 16
KEYS, VALUES, CHANNELS = (12, 8), (12, 6), (96, 80)


def test_the_layer_equals_gathered_angles_at_the_scale_of_what_is_left() -> None:
    """Cosines and sines of the dense head, of which a mask takes some for each head of keys."""
    torch.manual_seed(0)
    for scale, size in (("compressed", 12), ("original", 16)):
        layer = NarrowAttention(replace(TINY, scale=scale), 0).double()
        first = torch.stack([torch.randperm(8)[:6] for _ in range(GROUPS)])
        layer.entries.copy_(first)
        x = torch.randn(2, 7, 64, dtype=torch.float64)
        with torch.no_grad():
            expected = _theirs(layer, x, torch.cat((first, first + 8), 1), size)
            torch.testing.assert_close(layer(x), expected, rtol=1e-6, atol=1e-7)


def _theirs(layer: Any, x: Tensor, mask: Tensor, size: int) -> Tensor:
    """One head after the other, the full softmax."""
    rates = 10_000.0 ** (-torch.arange(0, HEAD, 2) / HEAD)
    angles = torch.arange(x.shape[1])[:, None] * torch.cat((rates, rates)).double()
    q, k, v = (p(x) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    heads = []
    for head in range(HEADS):
        group = head // (HEADS // GROUPS)
        cos, sin = angles.cos()[:, mask[group]], angles.sin()[:, mask[group]]

        def turned(y: Tensor, cos: Tensor = cos, sin: Tensor = sin) -> Tensor:
            a, b = y.chunk(2, -1)
            return y * cos + torch.cat((-b, a), -1) * sin

        own = turned(q[..., head * 12 : (head + 1) * 12])
        scores = own @ turned(k[..., group * 12 : (group + 1) * 12]).mT / size**0.5
        scores += torch.full((x.shape[1],) * 2, -torch.inf).triu(1)
        heads.append(scores.softmax(-1) @ v[..., group * 12 : (group + 1) * 12])
    out: Tensor = layer.o_proj(torch.cat(heads, -1))
    return out


def write(folder: Path, kind: str = "llama", **said: Any) -> Path:
    """A directory as the compressor leaves it, with code of its own and masks beside it."""
    torch.manual_seed(0)
    folder.mkdir()
    shapes = {"model.embed_tokens": (50, 64), "model.norm": (64,), "lm_head": (50, 64)}
    for layer, (key, value, wide) in enumerate(zip(KEYS, VALUES, CHANNELS, strict=True)):
        own = f"model.layers.{layer}"
        shapes |= {
            f"{own}.self_attn.q_proj": (HEADS * key, 64),
            f"{own}.self_attn.k_proj": (GROUPS * key, 64),
            f"{own}.self_attn.v_proj": (GROUPS * value, 64),
            f"{own}.self_attn.o_proj": (64, HEADS * value),
            f"{own}.mlp.gate_proj": (wide, 64),
            f"{own}.mlp.up_proj": (wide, 64),
            f"{own}.mlp.down_proj": (64, wide),
            f"{own}.input_layernorm": (64,),
            f"{own}.post_attention_layernorm": (64,),
        }
        if kind == "qwen3":
            shapes |= {f"{own}.self_attn.{name}_norm": (HEAD,) for name in "qk"}
    tensors = {f"{name}.weight": torch.randn(shape) * 0.2 for name, shape in shapes.items()}
    torch.save({name: x.bfloat16() for name, x in tensors.items()}, folder / "pytorch_model.bin")
    masks = []
    for size in KEYS:
        first = torch.stack([torch.randperm(HEAD // 2)[: size // 2] for _ in range(GROUPS)])
        masks.append(torch.cat((first, first + HEAD // 2), dim=1))
    torch.save(masks, folder / "rotary_masks.pt")
    config = {
        "model_type": kind,
        "auto_map": {"AutoModelForCausalLM": "Rebuild.NarrowForCausalLM"},
        "vocab_size": 50,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS,
        "head_dim": HEAD,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "ffn_dim": -1,
        "q_ranks": [HEADS * size for size in KEYS],
        "k_ranks": [GROUPS * size for size in KEYS],
        "v_ranks": [GROUPS * size for size in VALUES],
        "o_ranks": [HEADS * size for size in VALUES],
        "gate_ranks": list(CHANNELS),
        "mask_path": "/home/somebody/out/rotary_masks.pt",
    }
    (folder / "config.json").write_text(json.dumps({**config, **said}))
    (folder / "Rebuild.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    return folder


def test_a_directory_is_exported_without_its_code(tmp_path: Path) -> None:
    """Caches have the widths that the layers have, and the engine gives what the module gives."""
    folder = write(tmp_path / "narrow", "qwen3")
    bundle = intaglio.export(folder, tmp_path / "bundle", steps=16)
    assert not (folder / "ran").exists()
    assert [state.shape[-1] for state in bundle.manifest.main.states] == [12, 12, 8, 6]


def test_norms_of_heads_have_the_weights_of_the_entries_that_are_left(tmp_path: Path) -> None:
    """A Qwen3's are those of a whole head in the file."""
    folder = write(tmp_path / "narrow", "qwen3")
    held = torch.load(folder / "pytorch_model.bin", weights_only=True)
    mask = torch.load(folder / "rotary_masks.pt", weights_only=True)[1]
    module: Any = load_source(folder).module
    expected = held["model.layers.1.self_attn.k_norm.weight"].float()[mask]
    assert torch.equal(module.layers[1].mixer.k_norm, expected)


def test_the_scale_is_that_of_the_checkpoint_or_of_the_dense_model(tmp_path: Path) -> None:
    """As its config.json says, where somebody added it."""
    module: Any = load_source(write(tmp_path / "theirs")).module
    assert [layer.mixer.scale for layer in module.layers] == [12**-0.5, 8**-0.5]
    folder = write(tmp_path / "dense", modegpt_scale="original")
    module = load_source(folder).module
    assert [layer.mixer.scale for layer in module.layers] == [16**-0.5] * 2
    with pytest.raises(SourceError, match="modegpt_scale = 'mine', of which only 'compressed'"):
        load_source(write(tmp_path / "other", modegpt_scale="mine"))


def masks(change: Callable[[list[Tensor]], object]) -> Callable[[Path], None]:
    """A change of the masks of a directory."""

    def edit(folder: Path) -> None:
        held = torch.load(folder / "rotary_masks.pt", weights_only=True)
        torch.save(change(held), folder / "rotary_masks.pt")

    return edit


def one_more(folder: Path) -> None:
    """A tensor that no layer has."""
    held = torch.load(folder / "pytorch_model.bin", weights_only=True)
    held["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(48)
    torch.save(held, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda f: (f / "rotary_masks.pt").unlink(), "mask_path, and .* has none of that name"),
        (masks(lambda m: {"a": m[0]}), "which: mask_path of its config.json names no list of them"),
        (masks(lambda _: {"a": 1}), r"rotary_masks\.pt holds no tensors, as mask_path"),
        (masks(lambda m: m[:1]), "layer 1 keeps 8 of 16 entries of a head, and no file says"),
        (masks(lambda m: [*m, m[0]]), r"'?mask_path\.2"),
        (masks(lambda m: [m[1], m[0]]), r"mask of layer 0 is torch\.int64 \[2, 8\]; .* \[2, 12\]"),
        (masks(lambda m: [m[0].flip(1), m[1]]), "layer 0 does not keep whole pairs i and i \\+ 8"),
        (masks(lambda m: [m[0].float(), m[1]]), r"mask of layer 0 is torch\.float32"),
        (one_more, r"model\.layers\.0\.self_attn\.q_proj\.bias"),
    ],
)
def test_what_does_not_fit_is_named(
    edit: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    """Files, masks and tensors, in the names that they have there."""
    folder = write(tmp_path / "narrow")
    edit(folder)
    with pytest.raises(SourceError, match=said):
        load_source(folder)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"mask_path": None}, "layer 0 keeps 12 of 16 entries of a head, and no file says which"),
        ({"k_ranks": [24, 24]}, "q_ranks and k_ranks have 32 and 24 for layer 1"),
        ({"gate_ranks": [96]}, "gate_ranks has 1 entries for 2 layers"),
        ({"q_ranks": ["48", 32]}, "q_ranks = .*should be a list"),
        ({"model_type": "opt"}, "model_type = 'opt', of which only 'llama' or 'qwen3'"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling"),
    ],
)
def test_a_config_that_is_not_read_is_named(
    values: dict[str, Any], said: str, tmp_path: Path
) -> None:
    """By its value."""
    with pytest.raises(SourceError, match=said):
        load_source(write(tmp_path / "narrow", **values))


def test_sizes_that_do_not_fit_each_other_are_told() -> None:
    """Of a config of ours."""
    for values, said in (
        ({"key_sizes": [12]}, "an entry per layer"),
        ({"key_sizes": [12, 7]}, "even, up to 16"),
        ({"num_kv_heads": 3}, "do not share"),
        ({"scale": "half"}, "compressed or original"),
    ):
        with pytest.raises(SourceError, match=said):
            MODEGPT.configure(values)
