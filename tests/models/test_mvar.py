"""M-VAR: its sums written out, its published keys, and pictures that come out scale by scale."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import intaglio
from intaglio.errors import InputError, SourceError
from intaglio.exporter.sources.load import load_source
from intaglio.models import find, save
from intaglio.models.mvar import MVAR, Config, build
from intaglio.models.parts.mamba2 import Mamba2
from intaglio.models.parts.scale_training import Scales, encode, inputs_of, scales_of
from intaglio.models.parts.vqvae import Quantizer
from intaglio.runtime import Bundle, Session
from intaglio.runtime.whole_generation import WholeGenerator

CHECKPOINTS = Path(__file__).parents[2] / "models" / "checkpoints"
DATA = Path(__file__).parents[1] / "data" / "keys"
KEYS = json.loads((DATA / "mvar.json").read_text())
VAE = json.loads((DATA / "mvar_vae.json").read_text())
SMALL = Config(
    depth=1,
    hidden_size=16,
    num_heads=2,
    num_classes=3,
    state_size=4,
    head_size=8,
    sides=(1, 2, 3),
    codes=12,
    channels=4,
    phis=2,
    decoder_size=8,
    multipliers=(1, 1),
    groups=4,
)


def made(config: Config = SMALL) -> MVAR:
    torch.manual_seed(0)
    return build(config).eval()


def test_mamba2_equals_the_recurrence() -> None:
    """The convolution, the steps and the state of each head, token by token."""
    torch.manual_seed(0)
    layer = Mamba2(6, inner=12, head_size=4, state_size=5, conv_size=3, eps=1e-5).double()
    u = torch.randn(7, 6, dtype=torch.float64)
    with torch.no_grad():
        got = layer(u[None])[0].numpy()
    weights = {name: value.detach().numpy() for name, value in layer.named_parameters()}
    z, mixed, d = np.split(u.numpy() @ weights["in_proj.weight"].T, [12, 34], axis=1)
    state, wanted = np.zeros((3, 5, 4)), []
    for t in range(7):
        sums = weights["conv1d.bias"].copy()
        for back in range(3):
            if t >= back:
                sums += weights["conv1d.weight"][:, 0, 2 - back] * mixed[t - back]
        x, b, c = np.split(sums / (1 + np.exp(-sums)), [12, 17])
        step = np.log1p(np.exp(d[t] + weights["dt_bias"]))
        y = []
        for head in range(3):
            own = x[4 * head : 4 * head + 4]
            decay = np.exp(-np.exp(weights["A_log"][head]) * step[head])
            state[head] = decay * state[head] + step[head] * np.outer(b, own)
            y.append(c @ state[head] + weights["D"][head] * own)
        gated = np.concatenate(y) * z[t] / (1 + np.exp(-z[t]))
        normed = gated / np.sqrt((gated**2).mean() + 1e-5) * weights["norm.weight"]
        wanted.append(weights["out_proj.weight"] @ normed)
    np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("normalized", [False, True])
def test_attention_sees_one_scale_in_both_directions(normalized: bool) -> None:
    """Query by query and key by key: a quarter of the usual scale, or unit length and exp(s)."""
    config = Config(**{**SMALL.__dict__, "normalized_attention": normalized})
    layer: Any = made(config).double().blocks[0].get_submodule("attn")
    for parameter in layer.parameters():
        parameter.data.normal_()
    x = torch.randn(5, 16, dtype=torch.float64)
    scales = np.array([0, 1, 1, 1, 1])
    seen = scales[:, None] == scales
    w = {name: value.detach().numpy() for name, value in layer.named_parameters()}
    with torch.no_grad():
        got = layer(x[None], torch.from_numpy(seen))[0].numpy()
    bias = np.concatenate([w["q_bias"], np.zeros(16), w["v_bias"]])
    heads, size = config.num_heads, 16 // config.num_heads
    q, k, v = (x.numpy() @ w["mat_qkv.weight"].T + bias).reshape(5, 3, heads, size).swapaxes(0, 1)
    mixed = np.zeros((5, heads, size))
    for head in range(heads):
        scale = 0.25 / np.sqrt(size)
        if normalized:
            scale = min(np.exp(w["scale_mul_1H11"][0, head, 0, 0]), 100.0)
        for t in range(5):
            weights = np.zeros(5)
            for s in range(5):
                one, other = q[t, head], k[s, head]
                if normalized:
                    one, other = one / np.linalg.norm(one), other / np.linalg.norm(other)
                weights[s] = np.exp(scale * one @ other) if seen[t, s] else 0.0
            mixed[t, head] = weights / weights.sum() @ v[:, head]
    wanted = mixed.reshape(5, 16) @ w["proj.weight"].T + w["proj.bias"]
    np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("normalized", [False, True])
def test_scale_by_scale_equals_what_joins_all_scales_again(normalized: bool) -> None:
    """As published code generates: attention sees the scale, Mamba runs anew over all before it."""
    config = Config(**{**SMALL.__dict__, "normalized_attention": normalized})
    module = made(config).double()
    tokens = torch.randn(2, 14, 4, dtype=torch.float64)
    label = torch.tensor([1, 3])
    block: Any = module.blocks[0]
    with torch.no_grad():
        whole = module(tokens, label)
        condition = module.class_emb(label)
        g1, g2, g3, s1, s2, s3, b1, b2, b3 = block.ada_lin(condition)[:, None].chunk(9, -1)
        before = torch.zeros(2, 0, 16).double()
        for begin, end, scale in ((0, 1, 0), (1, 5, 1), (5, 14, 2)):
            x = condition[:, None] + module.pos_start if scale == 0 else None
            x = module.word_embed(tokens[:, begin:end]) if x is None else x
            x = x + module.lvl_embed.weight[scale] + module.pos_1LC[:, begin:end]
            everywhere = torch.ones(end - begin, end - begin, dtype=torch.bool)
            x = x + g1 * block.attn(norm(x) * (1 + s1) + b1, everywhere)
            before = torch.cat([before, x], dim=1)
            x = x + g2 * block.mamba(norm(before) * (1 + s2) + b2)[:, begin:]
            x = x + g3 * block.ffn(norm(x) * (1 + s3) + b3)
            scores = module.head(module.head_nm(x, condition))
            torch.testing.assert_close(scores, whole[:, begin:end])


def norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def test_a_scale_adds_what_resizing_and_its_own_convolution_give() -> None:
    """Bicubic up, phi of the nearest tick, and areas down, as PyTorch has them."""
    torch.manual_seed(0)
    sides, phis = (1, 2, 3, 5), 4
    quantizer = Quantizer(9, 4, sides, phis)
    picture, begin = torch.randn(2, 4, 5, 5), 0
    ticks = np.linspace(1 / 12, 11 / 12, 4)
    for scale, side in enumerate(sides):
        codes = torch.randint(9, (2, side**2))
        places = torch.arange(begin, begin + side**2)
        h = quantizer.embedding(codes).mT.reshape(2, 4, side, side)
        large = F.interpolate(h, size=(5, 5), mode="bicubic")
        convolutions: Any = quantizer.quant_resi["qresi_ls"]
        phi = convolutions[int(np.argmin(np.abs(ticks - scale / 3)))]
        wanted = picture + 0.5 * large + 0.5 * phi(large)
        torch.testing.assert_close(quantizer.add(codes, places, picture), wanted)
        down = F.interpolate(picture, size=(side, side), mode="area").flatten(2).mT
        torch.testing.assert_close(quantizer.at_places(picture, places), down)
        begin += side**2


def published() -> dict[str, Tensor]:
    """The tensors of both files, without data."""
    both = {**KEYS["keys"], **{f"vae.{name}": shape for name, shape in VAE["keys"].items()}}
    return {name: torch.empty(shape, device="meta") for name, shape in both.items()}


def test_the_published_keys_are_those_of_the_module() -> None:
    """At full size, 16 layers deep: every name with its shape, and no other."""
    model, tensors = find("mvar"), published()
    (layout,) = model.layouts
    for layer in range(16):
        tensors[f"blocks.{layer}.attn.zero_k_bias"] = torch.zeros(1024)
        sides = torch.tensor([1, 2, 3, 4, 5, 6, 8, 10, 13, 16])
        tensors[f"blocks.{layer}.attn.patch_nums"] = sides**2
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    assert layout.fits({}, tensors.keys())
    config = model.configure(layout.configure({}, shapes))
    assert config == Config()
    with torch.device("meta"):
        module = build(config)
    found = layout.weights(tensors, config)
    assert {k: v.shape for k, v in found.items()} == {
        k: v.shape for k, v in module.state_dict().items()
    }
    tensors["blocks.3.attn.patch_nums"] = torch.tensor([1, 4, 9])
    with pytest.raises(SourceError, match=r"have \[1, 4, 9\] codes, .* give their roots as sides"):
        layout.weights(tensors, config)


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ("blocks.0.ada_gss", "shared_aln=True"),
        ("shared_ada_lin.1.weight", "shared_aln=True"),
        (None, 'it holds no autoencoder, .* names that begin with "vae\\."'),
    ],
)
def test_what_is_not_a_whole_model_is_refused(added: str | None, said: str) -> None:
    """By what is at fault, and what to do."""
    (layout,) = find("mvar").layouts
    shapes = {name: tuple(shape) for name, shape in KEYS["keys"].items()}
    if added is not None:
        shapes[added] = (1,)
    with pytest.raises(SourceError, match=said):
        layout.configure({}, shapes)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mvar")
    save(folder / "small.pt", "mvar", SMALL, made())
    report = intaglio.export(folder / "small.pt", folder / "b", steps=14)
    main = report.manifest.main
    assert report.parity is not None
    assert report.parity.splits == ("1 + 4 + 9", "1 x 14", "5 + 9")
    assert main.limits.ends == (1, 5, 14)
    assert [spec.port for spec in main.states if spec.op != "prepared"][:2] == ["conv", "recurrent"]
    assert not any(spec.op == "attention" for spec in main.states)
    return folder / "b"


@torch.no_grad()
def test_a_picture_comes_out_as_the_module_makes_it(bundle: Path) -> None:
    """The likeliest codes with guidance: the module, scale by scale over all before, gives them."""
    module = made()
    label = torch.tensor([2, 0])
    generator = WholeGenerator(Bundle.open(bundle))
    seen: list[tuple[int, int]] = []
    found = generator.generate(
        {"label": label.numpy()},
        guidance=1.5,
        temperature=0.0,
        progress=lambda done, of: seen.append((done, of)),
    )["image"]
    assert seen == [(1, 3), (2, 3), (3, 3)]

    codes, picture = torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 4, 3, 3)
    for scale, places in enumerate(scales_of(module)):
        known = torch.cat([codes, torch.zeros(2, 14 - codes.shape[1], dtype=torch.int64)], dim=1)
        tokens = inputs_of(module, known)[:, : int(places[-1]) + 1]
        strength = 1.5 * scale / 2
        with_, without = module(tokens, label), module(tokens, torch.full((2,), 3))
        scores = (1 + strength) * with_ - strength * without
        codes = torch.cat([codes, scores[:, places].argmax(-1)], dim=1)
        picture = module.vae.quantize.add(codes[:, places], places, picture)
    np.testing.assert_allclose(found, module.vae(picture).numpy(), atol=1e-5)


def test_draws_are_each_rows_own(bundle: Path) -> None:
    """The same seed gives the same picture, alone or beside others; another seed another one."""
    generator = WholeGenerator(Bundle.open(bundle))

    def draw(labels: list[int], seed: int) -> Any:
        return generator.generate({"label": np.array(labels)}, seed=seed, top_k=6)["image"]

    both = draw([1, 2], 0)
    np.testing.assert_allclose(draw([1], 0)[0], both[0], atol=1e-5)
    assert not np.allclose(draw([1, 2], 1), both, atol=1e-2)


def test_what_cannot_be_generated_is_told(bundle: Path) -> None:
    """A class that there is not, and a part of a scale."""
    generator = WholeGenerator(Bundle.open(bundle))
    with pytest.raises(InputError, match="label"):
        generator.generate({"label": np.array([4])})
    session = Session.load(bundle)
    session.condition({"label": np.array([1])})
    session.step({"tokens": np.zeros((1, 1, 4), np.float32)})
    with pytest.raises(InputError, match="Give 4 tokens"):
        session.step({"tokens": np.zeros((1, 3, 4), np.float32)})


@torch.no_grad()
def test_codes_of_a_picture_sum_to_nearly_it() -> None:
    """Each scale takes the nearest codes to what is left."""
    module = made()
    features = torch.randn(2, 4, 3, 3)
    codes, summed, _ = encode(module, features)
    assert codes.shape == (2, 14)
    again = torch.zeros_like(features)
    for places in scales_of(module):
        again = module.vae.quantize.add(codes[:, places], places, again)
    torch.testing.assert_close(again, summed)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"sides": (2, 2)}, "each scale has to be larger"),
        ({"num_heads": 3}, "hidden_size = 16 has to be a multiple of 3"),
        ({"groups": 3}, "decoder_size = 8 has to be a multiple of 3"),
    ],
)
def test_values_that_do_not_fit_each_other_are_told(values: dict[str, Any], said: str) -> None:
    """By the names of both."""
    with pytest.raises(ValueError, match=said):
        build(Config(**{**SMALL.__dict__, **values}))


def test_the_recipe_leaves_what_the_checkpoint_keeps(tmp_path: Path) -> None:
    """Weights of two bytes, which a source is read from in single precision."""
    config = Config(**{**SMALL.__dict__, "num_classes": 8})
    module = made(config)
    said = Scales(steps=1, later_steps=1, batch=2).train(module, None, None)
    save(tmp_path / "half.pt", "mvar", config, module)
    kept = torch.load(CHECKPOINTS / "mvar.pt", weights_only=True)["state_dict"]

    assert "nats per code" in said
    for weights in (module.state_dict(), kept):
        assert {x.dtype for x in weights.values()} == {torch.float16}
    assert {x.dtype for x in load_source(tmp_path / "half.pt").module.state_dict().values()} == {
        torch.float32
    }


@torch.no_grad()
def test_pictures_of_the_checkpoint_are_of_their_class() -> None:
    """The classifier of NaLaFormer's checkpoint tells what the generator drew."""
    path = CHECKPOINTS / "mvar.pt"
    assert path.stat().st_size < 1_000_000
    drawing, telling = (restored(CHECKPOINTS / f"{name}.pt") for name in ("mvar", "nalaformer"))
    module: Any = drawing
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(8)
    codes = torch.zeros(8, 0, dtype=torch.int64)
    picture = torch.zeros(8, 8, 8, 8)
    for scale, places in enumerate(scales_of(module)):
        known = torch.cat([codes, torch.zeros(8, 130 - codes.shape[1], dtype=torch.int64)], dim=1)
        tokens, strength = inputs_of(module, known)[:, : int(places[-1]) + 1], 2.0 * scale / 5
        with_, without = module(tokens, label), module(tokens, torch.full((8,), 8))
        scores = ((1 + strength) * with_ - strength * without)[:, places]
        least = scores.topk(20, dim=-1)[0][..., -1:]
        weights = scores.masked_fill(scores < least, -torch.inf).softmax(-1).flatten(0, 1)
        drawn = torch.multinomial(weights, 1, generator=generator).reshape(8, -1)
        codes = torch.cat([codes, drawn], dim=1)
        picture = module.vae.quantize.add(drawn, places, picture)
    told = telling(2 * module.vae(picture) - 1).argmax(-1)
    assert int((told == label).sum()) >= 6


def restored(path: Path) -> torch.nn.Module:
    saved = torch.load(path, weights_only=True)
    model = find(saved["model"])
    module = model.build(model.configure(saved["config"])).eval()
    module.load_state_dict({name: x.float() for name, x in saved["state_dict"].items()})
    return module
