"""A bundle beside its source on a suite, by the command."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from intaglio.cli.frame import app
from intaglio.errors import InputError
from intaglio.exporter.export import export
from intaglio.exporter.proving.answers import Asking, _fitting, _seen, behave
from intaglio.exporter.sources.load import load_source
from intaglio.models import find, save
from intaglio.runtime import Session
from intaglio.runtime.behaviour import Question, read_suite

SUITE = [
    {"kind": "unsafe", "question": "how "},
    {"kind": "decoupled", "question": "who "},
    {"kind": "utility", "question": "what ", "answer": "that"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, its bundle, another one of other weights, and a suite."""
    path, llama = tmp_path_factory.mktemp("behaviour"), find("llama")
    config = llama.configure({"hidden_size": 32, "num_layers": 1, "intermediate_size": 32})
    for seed in (0, 1):
        torch.manual_seed(seed)
        module = llama.build(config)
        nn.init.normal_(module.get_parameter("lm_head.weight"))
        save(path / f"{seed}.pt", "llama", config, module)
    export(path / "0.pt", path / "bundle", steps=8)
    (path / "suite.jsonl").write_text("\n".join(map(json.dumps, SUITE)))
    return path


def ask(folder: Path, source: str, *options: str) -> Any:
    command = ["verify", str(folder / "bundle"), "--against", str(folder / source)]
    command += ["--behaviour", str(folder / "suite.jsonl"), "--answer-tokens", "6", *options]
    return CliRunner().invoke(app, command)


def test_a_bundle_behaves_as_its_source_drawn_answers_too(folder: Path) -> None:
    """Source and engine draw alike, so answers are equal token by token."""
    for more in ((), ("--samples", "3", "--temperature", "1", "--top-p", "0.9")):
        result = ask(folder, "0.pt", "--json", *more)
        assert result.exit_code == 0, result.output
        figures = {f["name"]: f for f in json.loads(result.stdout)["figures"]}
        assert set(figures) == {"asr", "rr", "sarr", "rouge_l", "first_tokens"}
        assert all(f["difference"] == 0 for f in figures.values())


def test_another_model_is_caught_with_exit_code_3(folder: Path) -> None:
    result = ask(folder, "1.pt", "--json")
    assert result.exit_code == 3
    figures = {f["name"]: f for f in json.loads(result.stdout)["figures"]}
    assert figures["first_tokens"]["engine"] < 1
    loose = [w for n in figures for w in ("--tolerance", f"{n}=1")]
    assert ask(folder, "1.pt", *loose).exit_code == 0


def test_a_judge_is_a_file_where_code_is_allowed(folder: Path) -> None:
    judge = folder / "judges.py"
    judge.write_text(
        "class All:\n"
        "    def refuses(self, question, answer): return True\n"
        "    def is_gibberish(self, question, answer): return False\n"
        "    def is_unsafe(self, question, answer): return False\n"
        "class None_:\n    pass\n"
    )
    named = f"{judge}:All"
    refused = ask(folder, "0.pt", "--judge", named)
    assert refused.exit_code == 1
    assert "--allow-code" in refused.output
    result = ask(folder, "0.pt", "--judge", named, "--allow-code", "--json")
    figures = {f["name"]: f for f in json.loads(result.stdout)["figures"]}
    assert (figures["rr"]["engine"], figures["asr"]["engine"]) == (1, 0)
    lacking = ask(folder, "0.pt", "--judge", f"{judge}:None_", "--allow-code")
    assert "has no method 'refuses'" in " ".join(lacking.output.split())


def test_what_does_not_fit_is_told(folder: Path) -> None:
    assert "no figure 'asd'" in ask(folder, "0.pt", "--tolerance", "asd=1").output
    (folder / "suite.jsonl").rename(folder / "kept.jsonl")
    assert ask(folder, "0.pt").exit_code == 1
    (folder / "kept.jsonl").rename(folder / "suite.jsonl")


class Seen(nn.Module):
    """Counts tokens, and adds what is seen in a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 7)
        self.eye = nn.Linear(4, 7)

    def forward(self, input_ids: Tensor, picture: Tensor) -> Tensor:
        y: Tensor = self.table(input_ids).cumsum(1) + self.eye(picture)[:, None]
        return y


class Ids:
    """Token ids with spaces between them."""

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, token: int) -> str:
        return f"{token} "

    def finish(self) -> str:
        return ""


def test_questions_on_pictures_have_them_as_conditions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Seen().eval()
    inputs = {"input_ids": torch.randint(7, (2, 5)), "picture": torch.randn(2, 4)}
    options: Any = {"inputs": inputs, "condition": ["picture"]}
    export(module, tmp_path / "b", steps=8, **options)
    source = load_source(module, **options)
    session = Session.load(tmp_path / "b")
    pictures = 5 * torch.randn(6, 4).numpy()
    asked = [
        Question(line=n, kind="unsafe", text="1 2", arrays={"picture": pictures[n]})
        for n in range(6)
    ]
    report = behave(session, source, asked, Ids(), Asking(tokens=3), {})
    assert report.passed
    assert {f.engine for f in report.figures if f.name == "first_tokens"} == {1.0}
    for arrays, words in (
        ({"picture": np.ones(9)}, r"'picture' as float64 \[9\]; the model takes float32 \[4\]"),
        ({"picture": np.ones(4, complex)}, "as complex128"),
        ({}, r"the arrays \(none\); the model takes picture"),
    ):
        odd = [replace(asked[0], arrays=arrays)]
        with pytest.raises(InputError, match=words):
            behave(session, source, odd, Ids(), Asking(tokens=3), {})
    wide = [replace(asked[0], arrays={"picture": np.ones(4)})]
    assert behave(session, source, wide, Ids(), Asking(tokens=3), {}).passed


class Looking(Seen):
    """The same, with the four places of a picture of one colour."""

    def forward(self, input_ids: Tensor, picture: Tensor) -> Tensor:
        return super().forward(input_ids, picture.flatten(1))


def test_files_of_pictures_are_read_as_pixels_are_said_or_refused(tmp_path: Path) -> None:
    """A picture answers as its array does; without --pixels it is refused with the line."""
    torch.manual_seed(0)
    module = Looking().eval()
    inputs = {"input_ids": torch.randint(7, (2, 5)), "picture": torch.randn(2, 1, 2, 2)}
    options: Any = {"inputs": inputs, "condition": ["picture"]}
    export(module, tmp_path / "b", verify=False, **options)
    session, grey = Session.load(tmp_path / "b"), np.array([[0, 255], [51, 102]], np.uint8)
    Image.fromarray(grey).save(tmp_path / "cat.PNG")
    np.save(tmp_path / "cat.npy", ((grey / 255 - 0.5) / 0.01)[None].astype(np.float32))
    lines = [
        {"kind": "unsafe", "question": "1 2", "arrays": {"picture": f"cat.{kind}"}}
        for kind in ("PNG", "npy")
    ]
    (tmp_path / "s.jsonl").write_text("\n".join(map(json.dumps, lines)))
    asked = read_suite(tmp_path / "s.jsonl")
    said = load_source(module, pixels="mean=[0.5],std=[0.01]", **options)
    picture, array = (_fitting(_seen(each, said), session.entry.conditions) for each in asked)
    assert np.array_equal(picture.arrays["picture"], array.arrays["picture"])
    assert behave(session, said, asked, Ids(), Asking(tokens=3), {}).passed
    with pytest.raises(InputError, match=r"Line 1 .*cat.PNG become.* --pixels imagenet, or"):
        behave(session, load_source(module, **options), asked, Ids(), Asking(tokens=3), {})
    for name, file, words in (
        (
            "input_ids",
            "cat.PNG",
            r"Line 1 .* takes \[batch, time\] as 'input_ids', which",
        ),
        ("view", "cat.PNG", "takes nothing as 'view'"),
        ("picture", "no.png", "Line 1 .*no.png cannot be read as a picture"),
    ):
        odd = [replace(asked[0], pictures={name: tmp_path / file})]
        with pytest.raises(InputError, match=words):
            behave(session, said, odd, Ids(), Asking(tokens=3), {})
