"""Verification: a right bundle passes every way, and each kind of fault is found and named."""

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.errors import BundleError, OptionError
from intaglio.exporter.export import export
from intaglio.exporter.options.loading import LoadOptions
from intaglio.exporter.options.served_shapes import ServedShapes
from intaglio.exporter.proving import verify as verification
from intaglio.exporter.proving.follow import splits_of
from intaglio.exporter.proving.reference import reference
from intaglio.exporter.proving.verify import verify
from intaglio.exporter.sources.examples import guess_specs
from intaglio.exporter.sources.input_spec import sampler
from intaglio.exporter.sources.source import Source
from intaglio.ops import linear_attention
from intaglio.runtime.session import Session

WIDTH, KERNEL, CONTEXT = 8, 3, 90
STATES = {
    "past_key_values.0.key": "layers.0",
    "past_key_values.0.value": "layers.0",
    "past.1.conv": "layers.1.conv",
    "past.1.recurrent": "layers.1",
}


class Attention(nn.Module):
    """Four heads over two heads of keys, with a table of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.key = nn.Linear(WIDTH, 4)
        self.places = nn.Parameter(torch.randn(CONTEXT, 4))

    def forward(self, x: Tensor) -> Tensor:
        q = x.view(*x.shape[:2], 4, 2).transpose(1, 2)
        k = (self.key(x) + self.places[: x.shape[1]]).unflatten(-1, (2, 2)).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, k, is_causal=True, enable_gqa=True)
        return y.transpose(1, 2).flatten(2)


class Recurrent(nn.Module):
    """A short convolution and linear attention with a decay."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(WIDTH, WIDTH, KERNEL, groups=WIDTH, padding=KERNEL - 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
        decay = F.logsigmoid(x[..., :2])
        heads: Mapping[str, Any] = {"q_num_heads": 2, "kv_num_heads": 2}
        out, _ = linear_attention(y, y, y, None, decay, update_rule="gated", **heads)
        return out


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, WIDTH)
        self.layers = nn.ModuleList([Attention(), Recurrent()])
        self.head = nn.Linear(WIDTH, 20)

    def forward(self, input_ids: Tensor) -> Any:
        x = self.embed(input_ids)
        for layer in self.layers:
            x = x + layer(F.layer_norm(x, [WIDTH]))
        return self.head(x)


def source_of(module: nn.Module) -> Source:
    return Source(
        path=Path("model.pt"),
        name="model.pt",
        format="test",
        sha256="0" * 64,
        model="test",
        config={},
        body=module.eval().requires_grad_(False),
        dynamic={"input_ids": {0: "batch", 1: "time"}},
        aliases={},
        sample=sampler(guess_specs(module, "the test")),
    )


@pytest.fixture(scope="module")
def source() -> Source:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return source_of(Model())


@pytest.fixture(scope="module")
def bundle(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(source, tmp_path_factory.mktemp("bundles") / "bundle", verify=False).out


def changed(source: Source, change: Callable[[Model], None]) -> Source:
    """The same source with other weights."""
    module = copy.deepcopy(source.module)
    assert isinstance(module, Model)
    change(module)
    return replace(source, body=module)


def test_a_right_bundle_passes_in_every_split(bundle: Path, source: Source) -> None:
    """Every output and every state, one at a time, at once and in parts, in float64."""
    report = verify(bundle, source, steps=80)

    assert report.passed
    assert report.splits == ("80 x 1", "1 x 80", "1 + 1 + 61 + 1 + 6 + 10")
    streams = {"logits": "", **STATES}
    compared = {(row.found.name, row.module, row.split, row.against) for row in report.rows}
    assert compared >= {(n, m, s, "source") for n, m in streams.items() for s in report.splits}
    assert {row.found.limit for row in report.rows} == {1e-4}
    assert report.worst.found.error < 1e-5
    assert (report.precision, report.unknown) == ("float64", ())
    assert report.summary().startswith("Parity holds over 80 steps of 2 random rows against model")


def test_states_are_compared_at_the_first_and_last_tokens(bundle: Path, source: Source) -> None:
    """Steps 1, 2, 63, 64 and the last one by one; the last alone where all come at once."""
    counts = {
        (row.split, row.found.name): row.found.steps
        for row in verify(bundle, source, steps=70).rows
    }

    assert counts["70 x 1", "past.1.recurrent"] == 5
    assert counts["1 x 70", "past.1.recurrent"] == 1
    assert counts["1 x 70", "logits"] == 70


def test_a_wrong_weight_fails(bundle: Path, source: Source) -> None:
    """One weight of 64 off by a hundredth is found, and the states that it enters are named."""

    def perturb(model: Model) -> None:
        with torch.no_grad():
            model.layers[0].key.weight[1, 1] += 0.01  # type: ignore[union-attr, operator, index]

    report = verify(bundle, changed(source, perturb), steps=20)

    assert not report.passed
    failed = {row.found.name for row in report.rows if not row.found.passed}
    assert failed == {"logits", *STATES}
    assert "Parity fails over 20 steps" in report.summary()
    assert "after token" in report.summary()
    assert report.divergence is None


def test_bisect_names_the_module_of_a_wrong_weight(bundle: Path, source: Source) -> None:
    """The first node at fault comes with the report, and none where parity holds."""

    def perturb(model: Model) -> None:
        with torch.no_grad():
            model.head.weight[1, 1] += 1

    wrong = verify(bundle, changed(source, perturb), steps=20, bisect=True)

    assert wrong.divergence is not None
    assert wrong.divergence.module == "head"
    assert wrong.divergence.summary() in wrong.summary()
    assert verify(bundle, source, steps=20, bisect=True).divergence is None


def test_a_lost_state_fails_where_it_is_carried(
    bundle: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that forgets at token 10 is right at once and wrong step by step, from there on."""
    step = Session.step

    def forget(self: Session, inputs: Mapping[str, Any], **options: Any) -> dict[str, Any]:
        if self.state.batch and self.state.past_length[0] == 9:
            snapshot = self.state.save()
            blank = {name: np.zeros_like(array) for name, array in snapshot.arrays.items()}
            self.state.restore(replace(snapshot, arrays=blank))
        return step(self, inputs, **options)

    monkeypatch.setattr(Session, "step", forget)
    report = verify(bundle, source, steps=20)

    logits = {row.split: row.found for row in report.rows if row.found.name == "logits"}
    assert logits["1 x 20"].passed
    assert not logits["20 x 1"].passed
    assert (logits["20 x 1"].worst_step or 0) >= 10


@pytest.mark.parametrize("name", STATES)
def test_a_wrong_state_fails_by_its_name(
    bundle: Path, source: Source, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state that no output shows yet is compared all the same, and its module named."""
    save = Session.load(bundle).state.__class__.save

    def spoil(self: Any, path: Any = None) -> Any:
        snapshot = save(self, path)
        snapshot.arrays[name][..., 0] += 0.01
        return snapshot

    monkeypatch.setattr("intaglio.runtime.session_state.State.save", spoil)
    report = verify(bundle, source, steps=3)

    failed = {(row.found.name, row.against) for row in report.failures}
    assert {found for found, against in failed if against == "source"} == {name}
    assert ("logits", "the same after a restored state") in failed  # what was saved is restored
    assert f"state {name!r} of module {STATES[name]!r}" in report.summary()


def test_states_unknown_to_the_source_are_compared_between_splits(
    bundle: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are listed, and the state after all tokens at once must be that after one by one."""
    monkeypatch.setattr(
        verification, "reference", lambda *given: replace(reference(*given), calls={})
    )
    report = verify(bundle, source, steps=20)

    assert report.passed
    assert set(report.unknown) == set(STATES)
    rows = [row for row in report.rows if row.found.name in STATES and row.split in report.splits]
    assert {row.against for row in rows} == {"split 20 x 1"}
    assert len(rows) == len(STATES) * 2


def test_a_tolerance_holds_for_its_name_alone(bundle: Path, source: Source) -> None:
    """A limit of 0 fails the output it is given for; a name that is not there is refused."""
    report = verify(bundle, source, steps=5, tolerance={"logits": 0.0, "past.1.conv": 3e-3})

    limits = {row.found.name: row.found.limit for row in report.rows}
    assert (limits["logits"], limits["past.1.conv"], limits["past.1.recurrent"]) == (
        0.0,
        3e-3,
        1e-4,
    )
    assert {row.found.name for row in report.rows if not row.found.passed} == {"logits"}
    with pytest.raises(OptionError, match=r"no output or state 'logit' .* logits, past_key"):
        verify(bundle, source, steps=5, tolerance={"logit": 1.0})
    with pytest.raises(OptionError, match=r"tolerance of 'logits' is nan; give a number from 0"):
        verify(bundle, source, steps=5, tolerance={"logits": float("nan")})


def test_steps_end_with_the_context(bundle: Path, source: Source) -> None:
    """The model has a table of 90 positions: of 512 steps asked for, 90 are run."""
    assert verify(bundle, source, steps=512).steps == CONTEXT
    with pytest.raises(OptionError, match="0 steps"):
        verify(bundle, source, steps=0)


def test_a_fixed_batch_is_respected(source: Source, tmp_path: Path) -> None:
    """A bundle for one row is verified with one row."""
    shapes = ServedShapes.parse(shapes=["input_ids:1x1:1x8:1x64"])
    out = export(source, tmp_path / "bundle", shapes=shapes, verify=False).out
    report = verify(out, source, steps=20)

    assert report.passed
    assert report.batch == 1


def test_another_source_is_refused(bundle: Path, source: Source) -> None:
    """Its inputs or outputs have other names: there is nothing to compare."""

    class Named(Model):
        def forward(self, input_ids: Tensor) -> Any:
            return {"scores": super().forward(input_ids)}

    with pytest.raises(BundleError, match="outputs logits, the source scores"):
        verify(bundle, source_of(Named()), steps=5)
    other = replace(source, dynamic={"tokens": {0: "batch", 1: "time"}})
    with pytest.raises(BundleError, match="inputs input_ids, the source tokens"):
        verify(bundle, other, steps=5)


def test_a_file_of_weights_is_built_as_the_bundle_says(
    bundle: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Model and config come from the manifest, if the model is intaglio's own and not code."""
    asked: list[Any] = []

    def load(path: Any, options: LoadOptions) -> Source:
        asked.append((path, options.model, options.config))
        return source

    monkeypatch.setattr(verification, "load", load)
    verify(bundle, "weights.pt", steps=2)
    verify(bundle, "weights.pt", steps=2, model="mine.py:build", config={"a": 1})

    assert asked == [("weights.pt", "test", {}), ("weights.pt", "mine.py:build", {"a": 1})]


def test_the_report_is_plain_json(bundle: Path, source: Source) -> None:
    """It goes into the manifest: verdict, evidence and limits."""
    entry = json.loads(json.dumps(verify(bundle, source, steps=5).to_json(), allow_nan=False))

    assert (entry["passed"], entry["steps"], entry["batch"], entry["seed"]) == (True, 5, 2, 0)
    assert (entry["against"], entry["precision"]) == ("model.pt", "float64")
    row = entry["rows"][0]
    assert (row["name"], row["kind"], row["split"]) == ("logits", "output", "5 x 1")
    assert row["passed"]
    assert 0 < row["error"] < row["limit"] == 1e-4


def test_progress_is_told(bundle: Path, source: Source) -> None:
    """Each phase with the fraction of it that is done."""
    told: list[tuple[str, float | None]] = []
    verify(bundle, source, steps=4, progress=lambda what, done: told.append((what, done)))

    steps = [(f"tokens in parts of 4 x 1, {i} of 4", i / 4) for i in range(4)]
    assert told[:5] == [("source", None), *steps]


@pytest.mark.parametrize("steps", [1, 2, 3, 63, 64, 65, 66, 67, 512])
def test_splits_cover_all_steps_and_stop_where_states_are_compared(steps: int) -> None:
    """None is empty, none comes twice, and the parts end at 1, 2, 63 and 64."""
    splits = splits_of(steps)

    assert all(sum(split) == steps and min(split) >= 1 for split in splits)
    assert len({tuple(split) for split in splits}) == len(splits)
    ends = {sum(splits[-1][:i]) for i in range(1, len(splits[-1]) + 1)}
    if steps > 3:
        assert {end for end in (1, 2, 63, 64) if end <= steps} <= ends
        assert all(a < b for a, b in pairwise(sorted(ends)))
