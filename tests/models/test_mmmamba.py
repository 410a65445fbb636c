"""mmMamba: its mixer is the equations of the paper, pictures stand where their tokens do."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import save_file

import intaglio
from intaglio.errors import SourceError
from intaglio.exporter.sources.load import load_source
from intaglio.models import save
from intaglio.models.mmmamba import MMMAMBA, PUBLISHED, Config, Mamba2Attention, MMMamba, build
from intaglio.models.parts.distillation import Distillation, observe, seed
from intaglio.runtime import Session

Array = npt.NDArray[np.float64]
KEYS = json.loads((Path(__file__).parents[1] / "data" / "keys" / "mmmamba.json").read_text())
SMALL: dict[str, Any] = {
    "vocab_size": 40,
    "image_token": 39,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 2,
    "attention_layers": "0",
}


def test_the_mixer_equals_the_recurrence_of_the_paper() -> None:
    """Token by token: S_t = e^{-d A} S_{t-1} + d k v^T, y = norm(S^T q) silu(g), a head each."""
    torch.manual_seed(0)
    config = Config(**SMALL)
    layer = Mamba2Attention(config).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(1, 7, 32, dtype=torch.float64)
    weights = {name: p.detach().numpy() for name, p in layer.named_parameters()}
    with torch.no_grad():
        np.testing.assert_allclose(
            layer(x)[0].numpy(), _mixer(x[0].numpy(), weights, config), rtol=1e-9, atol=1e-9
        )


def _mixer(x: Array, weights: dict[str, Array], config: Config) -> Array:
    heads, groups, size = config.num_heads, config.num_kv_heads, config.head_size
    v, k, q, g, dt = (x @ weights[f"{name}_proj.weight"].T for name in ("v", "k", "q", "g", "dt"))
    entering = np.concatenate((v, k, q), -1)
    before = np.concatenate((np.zeros_like(entering[:1]), entering[:-1]))
    kernel = weights["conv1d.weight"][:, 0]
    mixed = _silu(before * kernel[:, 0] + entering * kernel[:, 1] + weights["conv1d.bias"])
    v, k, q = np.split(mixed, (groups * size, 2 * groups * size), -1)
    step = np.log1p(np.exp(dt + weights["dt_bias"]))
    rows = np.zeros((len(x), heads, size))
    for head in range(heads):
        own = head // (heads // groups)
        state = np.zeros((size, size))
        for t in range(len(x)):
            kt, vt = (y[t, own * size : (own + 1) * size] for y in (k, v))
            state = np.exp(-step[t, head] * np.exp(weights["A_log"][head])) * state
            state = state + step[t, head] * np.outer(kt, vt)
            y = state.T @ q[t, head * size : (head + 1) * size]
            y = y / np.sqrt((y**2).mean() + config.gate_norm_eps) * weights["g_norm.weight"]
            rows[t, head] = y * _silu(g[t, head * size : (head + 1) * size])
    out: Array = rows.reshape(len(x), -1) @ weights["o_proj.weight"].T
    return out


def _silu(x: Array) -> Array:
    out: Array = x / (1 + np.exp(-x))
    return out


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A small hybrid: one layer of attention, one mixer."""
    folder = tmp_path_factory.mktemp("mmmamba")
    torch.manual_seed(1)
    config = MMMAMBA.configure(SMALL)
    module = MMMAMBA.build(config).eval()
    for parameter in module.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    save(folder / "model.pt", "mmmamba", config, module)
    intaglio.export(folder / "model.pt", folder / "bundle", steps=24)
    return module, folder / "bundle"


def test_pictures_are_given_once_and_steps_of_any_length_give_what_the_module_gives(
    exported: tuple[Any, Path],
) -> None:
    """Two pictures a row, their tokens among text, in one call, in parts, and one by one."""
    module, path = exported
    random = np.random.default_rng(0)
    ids = random.integers(0, 39, (3, 17))
    ids[0, :8], ids[1, 3:7], ids[2, 9:] = 39, 39, 39
    pixels = random.random((3, 2, 3, 16, 16)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(ids), torch.from_numpy(pixels)).numpy()
    for parts in ([17], [1, 5, 11], [1] * 17):
        session = Session.load(path)
        session.condition({"pixel_values": pixels})
        starts = np.cumsum([0, *parts])
        got = [
            session.step({"input_ids": ids[:, a:b]})["logits"] for a, b in pairwise(starts.tolist())
        ]
        np.testing.assert_allclose(np.concatenate(got, 1), expected, atol=2e-4, rtol=1e-4)
    session = Session.load(path)
    session.condition({"pixel_values": pixels})
    lengths = np.array([17, 4, 11])
    uneven = session.step({"input_ids": ids}, lengths=lengths)["logits"]
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(
            uneven[row, :length], expected[row, :length], atol=2e-4, rtol=1e-4
        )


def test_mimic_initialisation_lets_the_inherited_projections_through() -> None:
    """A fresh mixer convolves with (0, 1), and its steps do not depend on the token."""
    mixer = Mamba2Attention(Config(**SMALL))
    steps = torch.nn.functional.softplus(mixer.dt_bias)
    assert mixer.conv1d.weight[:, 0].tolist() == [[0.0, 1.0]] * 64
    assert not mixer.dt_proj.weight.any()
    assert 1e-3 <= steps.min() <= steps.max() <= 1e-1 + 1e-6


@pytest.mark.parametrize("layers", ["2", "0,x", "-1"])
def test_layers_that_there_are_not_are_refused(layers: str) -> None:
    with pytest.raises(SourceError, match="numbers of layers from 0 to 1"):
        MMMAMBA.build(MMMAMBA.configure({**SMALL, "attention_layers": layers}))


def test_the_published_keys_are_read() -> None:
    """Every key of the code at full size, hybrid, becomes parameters of their shapes."""
    config = MMMAMBA.configure(PUBLISHED.configure(KEYS["config"], {}))
    assert config.attention_layers == "0,4,8,12,16,20,24,28"
    with torch.device("meta"):
        module = MMMAMBA.build(config)
        theirs = {name: torch.empty(shape) for name, shape in KEYS["keys"].items()}
    found = PUBLISHED.weights(theirs, config)
    assert {n: x.shape for n, x in found.items()} == {
        n: x.shape for n, x in module.state_dict().items()
    }


def test_a_published_checkpoint_gives_what_its_parts_say(tmp_path: Path) -> None:
    """Fused rows are cut in the order v, k, q, gate, step; grouped ones by key-value head."""
    module = MMMAMBA.build(MMMAMBA.configure(SMALL)).eval()
    (tmp_path / "config.json").write_text(json.dumps(_published_config()))
    save_file(_published(module), tmp_path / "model.safetensors")
    source = load_source(tmp_path)
    loaded = source.body
    assert isinstance(loaded, MMMamba)
    assert (source.model, list(loaded.fresh())) == ("mmmamba", [1])
    for name, parameter in module.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], parameter, msg=name)
    tensors = _published(module)
    tensors["language_model.model.layers.0.attention.wqkv.weight"] = torch.zeros(3)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(SourceError, match=r"layers\.0\.attention\.wqkv\.weight"):
        load_source(tmp_path)


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [
        ("embedding_config", "pixel_shuffle_loc", "post"),
        ("embedding_config", "special_token_maps", {"<img>": 1}),
        ("embedding_config", "hidden_size", 64),
        ("llm_config", "layers_block_type", ["rwkv"]),
        ("embedding_config", "hidden_act", "gelu"),
        ("llm_config", "hidden_act", "gelu"),
        ("embedding_config", "llm_vocab_size", 41),
        ("embedding_config", "mlp_bias", True),
        ("embedding_config", "qk_norm", True),
        ("llm_config", "qk_norm", True),
        (None, "force_image_size", 32),
        (None, "use_llm_lora", 8),
    ],
)
def test_what_the_layout_cannot_hold_is_refused_by_name(
    config: str | None, name: str, value: object
) -> None:
    values = _published_config()
    (values if config is None else values[config])[name] = value
    with pytest.raises(SourceError, match="rwkv" if value == ["rwkv"] else name):
        PUBLISHED.configure(values, {})


@pytest.mark.parametrize("config", [None, "embedding_config", "llm_config"])
def test_what_a_directory_says_and_nobody_knows_is_refused(
    config: str | None, tmp_path: Path
) -> None:
    """Within either config as well, by its whole name; what the library adds changes nothing."""
    values = _published_config()
    values |= {"template": "internlm2-chat", "use_thumbnail": True, "select_layer": -1}
    values["llm_config"] |= {"top_k": 50, "do_sample": False, "architectures": ["InternLM2"]}
    values["embedding_config"] |= {"tie_word_embeddings": True, "drop_path_rate": 0.1}
    save_file(_published(MMMAMBA.build(MMMAMBA.configure(SMALL))), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert load_source(tmp_path).model == "mmmamba"
    (values if config is None else values[config])["qk_norm"] = True
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(SourceError, match=r"\.".join(filter(None, (config, "qk_norm = True")))):
        load_source(tmp_path)


def _published_config() -> dict[str, Any]:
    shared = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000,
        "num_hidden_layers": 1,
    }
    vision = {
        **shared,
        "layers_block_type": ["mha"],
        "patch_size": 2,
        "image_size": 16,
        "use_ls": False,
        "use_pixel_shuffle_proj": True,
        "img_context_token_id": 39,
    }
    text = {**shared, "layers_block_type": ["mamba2"], "vocab_size": 40}
    return {"model_type": "mmMamba_chat", "embedding_config": vision, "llm_config": text}


def _published(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a small hybrid in the names and the order of rows of the published code."""
    ours = module.state_dict()
    first, second = (f"text.layers.{i}." for i in range(2))
    q, k, v = (ours[f"{first}mixer.{n}_proj.weight"].reshape(2, -1, 8, 32) for n in "qkv")
    fused = [ours[f"{second}mixer.{n}_proj.weight"] for n in ("v", "k", "q", "g", "dt")]
    vision, encoder = "embedding_model.vision_embeddings", "embedding_model.encoder.0"
    layer = "language_model.model.layers.0"
    made = {
        f"{vision}.class_embedding": torch.zeros(1, 1, 32),
        f"{vision}.position_embedding": torch.cat(
            (torch.zeros(1, 1, 32), ours["vision.position_embedding"]), 1
        ),
        f"{vision}.patch_embedding.weight": ours["vision.patch_embedding.weight"],
        f"{vision}.patch_embedding.bias": ours["vision.patch_embedding.bias"],
        "embedding_model.llm_text_embeddings.weight": ours["text.embed_tokens.weight"],
        "language_model.model.tok_embeddings.weight": torch.zeros(40, 32),
        "language_model.model.norm.weight": ours["text.norm.weight"],
        "language_model.output.weight": ours["text.lm_head.weight"],
        f"{encoder}.attention.wqkv.weight": torch.cat((q, k, v), 1).reshape(-1, 32),
        f"{encoder}.attention.wo.weight": ours[f"{first}mixer.o_proj.weight"],
        f"{layer}.attention.wvkqgdt.weight": torch.cat(fused),
        f"{layer}.attention.A_log_bias": ours[f"{second}mixer.A_log"],
        f"{layer}.attention.dt_bias": ours[f"{second}mixer.dt_bias"],
        f"{layer}.attention.conv1d.weight": ours[f"{second}mixer.conv1d.weight"],
        f"{layer}.attention.conv1d.bias": ours[f"{second}mixer.conv1d.bias"],
        f"{layer}.attention.g_norm_swish_gate.weight": ours[f"{second}mixer.g_norm.weight"],
        f"{layer}.attention.o_proj.weight": ours[f"{second}mixer.o_proj.weight"],
    }
    for part in ("0.weight", "0.bias", "2.weight", "2.bias"):
        made[f"embedding_model.pixel_shuffle_proj.{part}"] = ours[f"vision.proj.{part}"]
    for prefix, name in ((first, encoder), (second, layer)):
        made[f"{name}.attention_norm.weight"] = ours[f"{prefix}input_layernorm.weight"]
        made[f"{name}.ffn_norm.weight"] = ours[f"{prefix}post_attention_layernorm.weight"]
        for theirs, own in (("w1", "gate"), ("w3", "up"), ("w2", "down")):
            made[f"{name}.feed_forward.{theirs}.weight"] = ours[f"{prefix}mlp.{own}_proj.weight"]
    return {name: x.clone().contiguous() for name, x in made.items()}


SHORT = Distillation(steps=2, stages=(2, 2, 2), batch=2, questions=3)


@pytest.mark.parametrize(
    ("name", "value"),
    [("image_size", 18), ("project", False), ("image_token", 40), ("num_kv_heads", 3)],
)
def test_sizes_that_do_not_go_together_are_refused(name: str, value: object) -> None:
    with pytest.raises(SourceError, match=f"does not fit: .*{name} = "):
        build(MMMAMBA.configure({**SMALL, name: value}))


def test_pictures_may_enter_as_they_are() -> None:
    """Not shuffled and not projected: a token for each patch."""
    config = MMMAMBA.configure({**SMALL, "project": False, "shuffle": 1})
    assert build(config).vision(torch.zeros(2, 3, 3, 16, 16)).shape == (2, 3 * 64, 32)


def test_a_student_is_seeded_and_distilled_in_stages() -> None:
    """Mixers take q, k, v and o of the attention, and o is never trained."""
    torch.manual_seed(0)
    teacher = build(MMMAMBA.configure({**SMALL, "attention_layers": "0,1"}))
    student = build(MMMAMBA.configure({**SMALL, "attention_layers": ""}))
    assert 0 <= SHORT.teach(teacher) <= 1
    seed(student, teacher)
    theirs, before = teacher.state_dict(), student.state_dict()
    shared = [name for name in theirs if name in before]
    assert set(shared) == set(theirs)
    assert all(torch.equal(before[name], theirs[name]) for name in shared)
    shares = SHORT.distil(student, teacher)
    assert len(shares) == 3
    after = student.state_dict()
    changed = {
        name.rpartition("mixer.")[2] for name in theirs if (after[name] != theirs[name]).any()
    }
    assert changed == {"q_proj.weight", "k_proj.weight", "v_proj.weight"}


def test_what_enters_and_leaves_each_layer_is_observed() -> None:
    module = build(MMMAMBA.configure(SMALL)).eval()
    ids, pixels, _ = SHORT._draw(module.config, 2, torch.Generator().manual_seed(0))
    for mixer, (x, y) in zip(module.mixers(), observe(module, ids, pixels), strict=True):
        torch.testing.assert_close(mixer(x), y)


def test_the_recipe_says_what_it_begins_from(tmp_path: Path) -> None:
    small = {**SMALL, "attention_layers": ""}
    student = build(MMMAMBA.configure(small))
    with pytest.raises(SourceError, match="--preset teacher"):
        SHORT.train(student, None, None)
    save(tmp_path / "student.pt", "mmmamba", student.config, student)
    with pytest.raises(SourceError, match="has mixers itself"):
        SHORT.train(student, None, tmp_path / "student.pt")
    wide = build(MMMAMBA.configure({**small, "hidden_size": 48}))
    with pytest.raises(SourceError, match="other sizes: hidden_size = 32"):
        SHORT.train(wide, None, tmp_path / "student.pt")


@pytest.mark.parametrize(("name", "least"), [("mmmamba_teacher", 0.99), ("mmmamba", 0.95)])
def test_trained_checkpoints_answer_questions_about_pictures(name: str, least: float) -> None:
    """Pictures that neither was trained on; one colour in eight is guessed."""
    path = Path(__file__).parents[2] / "models" / "checkpoints" / f"{name}.pt"
    saved = torch.load(path, weights_only=True)
    module = build(MMMAMBA.configure(saved["config"])).eval()
    module.load_state_dict(saved["state_dict"])
    assert Distillation().share(module) >= least
