"""NaLaFormer: its attention is the equation of its code, its keys are the published ones."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import intaglio
from intaglio.errors import SourceError
from intaglio.models import find, save
from intaglio.models.nalaformer import Config, LinearAttention, Rotation, build
from intaglio.models.parts.drawn_shapes import accuracy
from intaglio.runtime import Session

SMALL = Config(
    num_classes=8,
    embed_dims=(16, 24),
    depths=(1, 1),
    num_heads=(2, 2),
    mlp_ratios=(2.0, 1.5),
    kinds=("l", "v"),
    projection=32,
)
CHECKPOINT = Path(__file__).parents[2] / "models" / "checkpoints" / "nalaformer.pt"
KEYS = json.loads((Path(__file__).parents[1] / "data" / "keys" / "nalaformer.json").read_text())


def power(q: np.ndarray) -> float:
    return 3 * (0.5 + float(np.tanh(np.sqrt((q**2).sum()))))


def turned(x: np.ndarray, row: int, column: int) -> np.ndarray:
    """Pairs of channels turned by angles of the row in the first half, of the column in the other.

    Of d channels each half has d / 4 frequencies from 1 to 1/10000.
    """
    count = len(x) // 4
    found = x.copy()
    for pair in range(2 * count):
        share = (pair % count) / max(count - 1, 1)
        angle = (row if pair < count else column) / 10_000**share
        a, b = x[2 * pair], x[2 * pair + 1]
        found[2 * pair] = a * np.cos(angle) - b * np.sin(angle)
        found[2 * pair + 1] = b * np.cos(angle) + a * np.sin(angle)
    return found


def test_attention_equals_the_sums_over_all_pairs() -> None:
    """Weights are products of rotated features over those of features as they are, plus 1e-6."""
    torch.manual_seed(0)
    height, width, size, heads = 3, 5, 16, 2
    layer = LinearAttention(size, heads).double()
    rotation = Rotation(size // heads).double()
    q, k, v = (torch.randn(1, heads, height * width, size // heads).double() for _ in range(3))
    with torch.no_grad():
        got = layer.mix(q, k, v, *rotation(height, width))[0].numpy()

    wanted = np.zeros_like(got)
    for head in range(heads):
        queries, keys, values = (x[0, head].numpy() for x in (q, k, v))
        for i, query in enumerate(queries):
            p, unit = power(query), query / np.sqrt((query**2).sum())
            above, below = np.zeros(size // heads), 0.0
            for j, key in enumerate(keys):
                weight = 0.0
                for sign in (1, -1):
                    fq, fk = np.maximum(sign * unit, 0) ** p, np.maximum(sign * key, 0) ** 3
                    weight += turned(fq, *divmod(i, width)) @ turned(fk, *divmod(j, width))
                    below += fq @ fk / len(keys)
                above += weight * values[j] / len(keys)
            wanted[head, i] = above / (below + 1e-6)
    np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-12)


def test_the_published_keys_are_those_of_the_module() -> None:
    """At full size: every name with its shape, and no other."""
    with torch.device("meta"):
        module = build(find("nalaformer").configure(KEYS["config"]))
    assert {k: list(v.shape) for k, v in module.state_dict().items()} == KEYS["keys"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("nalaformer") / "tiny.pt"
    module = build(SMALL)
    for name, value in module.state_dict().items():
        if name.endswith("running_mean"):
            value.normal_(std=0.1)
    save(path, "nalaformer", SMALL, module)
    return path


def test_one_bundle_takes_pictures_of_all_sizes(checkpoint: Path, tmp_path: Path) -> None:
    """Height and width are free, odd ones too, and rows do not meet."""
    report = intaglio.export(checkpoint, tmp_path / "b")
    assert report.parity is not None
    assert report.manifest.main.inputs[0].shape == ("batch", 3, "height", "width")
    module = build(SMALL).eval()
    module.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    session = Session.load(tmp_path / "b")
    for batch, height, width in ((1, 33, 47), (3, 64, 32), (2, 9, 18)):
        image = torch.randn(batch, 3, height, width)
        with torch.no_grad():
            wanted = module(image).numpy()
        (got,) = session.step({"image": image.numpy()}).values()
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * abs(wanted).max())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"depths": (1, 1)}, "depths has to have a value for each of the 4 stages"),
        ({"kinds": ("l", "l", "x", "v")}, "each is 'l' or 'v'"),
        ({"num_heads": (3, 2, 4, 12)}, "a width of 32 has to be a multiple of 4 for 3 heads"),
    ],
)
def test_values_that_do_not_fit_each_other_are_told(values: dict[str, object], said: str) -> None:
    """And lists of another kind are refused by the config."""
    with pytest.raises(ValueError, match=said):
        build(Config(**values))  # type: ignore[arg-type]
    with pytest.raises(SourceError, match=r"depths = .* should be a list, each entry an integer"):
        find("nalaformer").configure({"depths": [1, 0]})


def test_the_recorded_accuracy_of_the_checkpoint_holds() -> None:
    """On pictures that it was not trained on."""
    saved = torch.load(CHECKPOINT, weights_only=True)
    module = build(find("nalaformer").configure(saved["config"])).eval()
    module.load_state_dict(saved["state_dict"])
    assert CHECKPOINT.stat().st_size < 300_000
    assert accuracy(module, 32) > 0.99
