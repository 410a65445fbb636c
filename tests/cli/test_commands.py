"""The command line: exit codes, and what goes to stdout and to stderr."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
from command_line import invoke
from engines import add_engine

from intaglio import __version__
from intaglio.cli import diagnosis
from intaglio.errors import BundleError, ParityError

TERMINAL_CODES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


COMMAND = [sys.executable, "-P", "-m", "intaglio"]


@pytest.fixture(scope="module", autouse=True)
def _quickly(commands: Path) -> None:
    """Let commands run where the libraries are imported: that is most of what they take."""
    COMMAND[:] = [str(commands / "intaglio")]


def intaglio(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command as people do, off a terminal; its streams carry no control characters."""
    run = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True)
    assert not TERMINAL_CODES.search(run.stdout + run.stderr)
    return run


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make `intaglio doctor` raise `error`."""

    def diagnose() -> None:
        raise error

    monkeypatch.setattr(diagnosis, "diagnose", diagnose)


def test_help_is_a_result() -> None:
    run = intaglio("--help")

    assert (run.returncode, run.stderr) == (0, "")
    assert "Engrave a trained PyTorch model" in run.stdout


def test_version() -> None:
    assert invoke("--version").stdout == f"intaglio {__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["engrave"], ["inspect"], ["inspect", "--what"], ["list", "cats"]]
)
def test_wrong_usage_exits_2_and_leaves_stdout_empty(arguments: list[str]) -> None:
    result = invoke(*arguments)

    assert (result.exit_code, result.stdout) == (2, "")
    assert "Usage: intaglio" in result.stderr


@pytest.mark.parametrize("command", ["run", "verify", "profile", "doctor", "prompt"])
def test_what_is_no_utf_8_is_told(bundle: Path, tmp_path: Path, command: str) -> None:
    """Names of files may be any bytes; the libraries that read them take text."""
    odd = tmp_path / os.fsdecode(b"n\xff")
    copytree(bundle, odd)
    arguments: dict[str, list[str | Path]] = {
        "run": ["run", odd, "--prompt", "a"],
        "verify": ["verify", odd, "--against", odd],
        "profile": ["profile", odd, "--duration", "0"],
        "doctor": ["doctor", odd],
        "prompt": ["run", bundle, "--prompt", "\udcff"],
    }
    result = invoke(*arguments[command])

    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("intaglio: ")


def test_a_fault_of_ours_is_logged_whatever_was_typed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["intaglio", "\udcff"])
    failing(monkeypatch, AssertionError("\udcff"))

    assert invoke("doctor").exit_code == 4
    (log,) = tmp_path.glob("intaglio-*.log")
    assert "AssertionError" in log.read_text(encoding="utf-8")


def test_a_fault_of_the_users_exits_1_with_one_message(tmp_path: Path) -> None:
    """No traceback, and the file in question is named."""
    run = intaglio("inspect", tmp_path / "absent")

    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith("intaglio: ")
    assert str(tmp_path / "absent") in run.stderr
    assert "Traceback" not in run.stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    run = intaglio("--debug", "inspect", tmp_path)

    assert run.returncode == 1
    assert "Traceback" in run.stderr


@pytest.mark.parametrize("order", [["--json", "inspect", "x"], ["inspect", "x", "--json"]])
def test_json_holds_the_error_too(order: list[str]) -> None:
    """Global options stand before the command or after it."""
    result = invoke(*order)
    error = json.loads(result.stdout)["error"]

    assert result.exit_code == error["exit_code"] == 1
    assert error["type"] == "BundleError"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BundleError("changed"), 1),
        (PermissionError(13, "Permission denied", "bundle"), 1),
        (ModuleNotFoundError("no torch", name="torch.onnx"), 1),
        (ParityError("moved"), 3),
        (KeyError("x"), 4),
        (ModuleNotFoundError("no such thing", name="intaglio.nothing"), 4),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, error)
    result = invoke("doctor")

    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith("intaglio: ")
    assert "Traceback" not in result.stderr


def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, ModuleNotFoundError("no torch", name="torch"))

    assert "pip install 'intaglio[export]'" in invoke("doctor").stderr


def test_a_fault_of_ours_leaves_the_traceback_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, ZeroDivisionError("division by zero"))
    said = invoke("doctor").stderr
    log = Path(re.search(r"file (\S+\.log)", said)[1])  # type: ignore[index]
    text = log.read_text()
    log.unlink()

    assert "ZeroDivisionError: division by zero" in said
    assert "Traceback (most recent call last)" in text
    assert f"intaglio {__version__}" in text


def test_doctor_tells_what_can_be_done_here() -> None:
    report = json.loads(invoke("doctor", "--json").stdout)

    assert report["can"]["export"]["ok"]
    assert "CPUExecutionProvider" in report["targets"]["ort"]["providers"]
    assert "export: yes" in invoke("doctor").stdout


def test_doctor_says_which_targets_of_a_bundle_run_here(bundle: Path, tmp_path: Path) -> None:
    """Loading what can be loaded; a target that cannot is told with what it lacks."""
    with_engine = tmp_path / "bundle"
    copytree(bundle, with_engine)
    add_engine(with_engine, "0.0")
    report = json.loads(invoke("doctor", bundle, with_engine, "--json").stdout)
    said = invoke("doctor", with_engine).stdout

    assert report["bundles"][str(bundle)] == {"ort": []}
    first, *_ = report["bundles"][str(with_engine)]["trt"]
    assert "tensorrt_rtx 0.0" in first
    assert f"{with_engine}, target ort: runs here" in said
    assert f"{with_engine}, target trt: does not" in said


def test_export_prints_one_page_and_leaves_a_verified_bundle(
    checkpoint: Path, tmp_path: Path
) -> None:
    """States, passes, parity and files are on stdout; what is going on, on stderr."""
    out = tmp_path / "out"
    run = invoke("export", checkpoint, "-o", out, "--steps", "5", "--check-passes", "-v")

    assert run.exit_code == 0
    assert not TERMINAL_CODES.search(run.stdout + run.stderr)
    for word in ("past_key_values.0.key", "statefulize", "parity   holds over 5 steps"):
        assert word in run.stdout
    assert "trace ..." in run.stderr
    assert (out / "manifest.json").is_file()
    assert not (out / "report.json").exists()  # the manifest holds the evidence


def test_quiet_export_says_nothing_on_stderr(checkpoint: Path, tmp_path: Path) -> None:
    """In a process of its own: what libraries say as they are imported is caught too."""
    run = intaglio("export", checkpoint, "-o", tmp_path / "out", "--no-verify", "--quiet")

    assert (run.returncode, run.stderr) == (0, "")


def test_options_reach_the_export(checkpoint: Path, tmp_path: Path) -> None:
    """The manifest tells what was asked for."""
    result = invoke(
        *("export", checkpoint, "-o", tmp_path / "out", "--json", "--no-portable", "--kv=grow"),
        *("--pass", "fold-constants:limit=10", "--maxShapes", "input_ids:1x64"),
        *("--tolerance", "logits=0.5", "--steps", "3"),
    )
    report = json.loads(result.stdout)
    manifest = report["manifest"]

    assert {state["layout"] for state in manifest["graphs"]["main"]["states"]} == {"grow"}
    assert manifest["recipe"]["passes"] == [{"name": "fold-constants", "options": {"limit": 10}}]
    assert manifest["recipe"]["shapes"]["input_ids"]["maximum"] == [1, 64]
    assert "model.onnx" not in manifest["files"]
    assert {row["limit"] for row in report["parity"]["rows"] if row["name"] == "logits"} == {0.5}


@pytest.mark.parametrize("text", ["logits", "=1", "logits=much"])
def test_a_tolerance_that_is_none_is_a_fault_of_usage(text: str, tmp_path: Path) -> None:
    result = invoke("verify", tmp_path, "--against", "x", "--tolerance", text)

    assert result.exit_code == 2
    assert "NAME=VALUE" in result.stderr


def test_an_accuracy_that_is_none_is_a_fault_of_usage(tmp_path: Path) -> None:
    result = invoke("export", "x.pt", "-o", tmp_path / "b", "--ort-accuracy", "finer")

    assert result.exit_code == 2
    assert all(word in result.stderr for word in ("finer", "auto", "fast", "fine", "exact"))


def test_an_existing_bundle_stays_without_force(checkpoint: Path, bundle: Path) -> None:
    before = (bundle / "manifest.json").read_bytes()
    result = invoke("export", checkpoint, "-o", bundle)

    assert result.exit_code == 1
    assert "--force" in result.stderr
    assert (bundle / "manifest.json").read_bytes() == before


def test_verify_tells_whether_parity_holds(checkpoint: Path, bundle: Path) -> None:
    held = invoke("verify", bundle, "--against", checkpoint, "--steps", "5", "--json")
    limits = ["--tolerance", "logits=0"]
    failed = invoke("verify", bundle, "--against", checkpoint, "--steps", "5", *limits)

    assert (held.exit_code, json.loads(held.stdout)["passed"]) == (0, True)
    assert failed.exit_code == 3
    assert "Parity fails over 5 steps" in failed.stdout
    kept = json.loads((bundle / "report.json").read_text())["verify"]  # of the last one
    assert (kept["passed"], kept["steps"]) == (False, 5)


def test_a_failed_export_exits_3_and_leaves_no_bundle(checkpoint: Path, tmp_path: Path) -> None:
    limits = ["--tolerance", "logits=0", "--steps", "3"]
    result = invoke("export", checkpoint, "-o", tmp_path / "out", *limits)

    assert result.exit_code == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.failed"]


def test_inspect_shows_a_bundle(bundle: Path) -> None:
    shown = invoke("inspect", bundle)
    manifest = json.loads(invoke("inspect", bundle, "--json").stdout)["manifest"]

    assert shown.exit_code == 0
    assert "context  any length" in shown.stdout
    assert manifest == json.loads((bundle / "manifest.json").read_text())


def test_inspect_names_files_that_are_damaged(bundle: Path, tmp_path: Path) -> None:
    copy = copytree(bundle, tmp_path / "copy")
    (copy / "ort" / "model.onnx").write_bytes(b"other")
    result = invoke("inspect", copy, "--json")

    assert result.exit_code == 1
    assert list(json.loads(result.stdout)["damage"]) == ["ort/model.onnx"]


def test_run_streams_the_text_and_tells_the_latency(bundle: Path) -> None:
    run = intaglio("run", bundle, "--prompt", "def", "--steps", "8")
    told = json.loads(intaglio("run", bundle, "--prompt", "def", "--steps", "8", "--json").stdout)

    assert run.stdout == f"{told['text']}\n"
    assert len(told["tokens"]) == 8
    assert "prompt of 3 tokens" in run.stderr


def test_run_drafts_with_another_bundle(bundle: Path) -> None:
    """The same text, and how much of what was proposed fitted; a bundle proposes all that fits."""
    options = ("run", bundle, "--prompt=def", "--steps=12", "--json")
    told = json.loads(invoke(*options, "--draft", bundle, "--draft-tokens=3").stdout)
    shown = invoke(*options[:-1], "--draft", bundle)

    assert told["tokens"] == json.loads(invoke(*options).stdout)["tokens"]
    assert told["draft"] == {
        "tokens": 3,
        "proposed": 8,
        "accepted": 8,
        "acceptance": 1.0,
        "calls": 3,
    }
    assert "tokens accepted (100%)" in shown.stderr
    assert re.search(r"11 tokens, each [0-9.]+ ms \(mean\)", shown.stderr)


def test_run_prints_lines_of_json(bundle: Path) -> None:
    """One for each token, as it comes, and then what --json prints; errors are such a line, too."""
    options = ("--steps=6", "--top-k=9", "--min-p=0.01", "--repetition-penalty=1.2", "--seed=3")
    *tokens, last = map(
        json.loads, invoke("run", bundle, "--prompt=def", *options, "--jsonl").stdout.splitlines()
    )
    told = json.loads(invoke("run", bundle, "--prompt=def", *options, "--json").stdout)
    refused = invoke("run", bundle, "--prompt=def", "--top-k=0", "--jsonl")

    assert [line["token"] for line in tokens if line["token"] is not None] == last["tokens"]
    assert "".join(line["text"] for line in tokens) == last["text"]
    assert (last["tokens"], last["text"]) == (told["tokens"], told["text"])
    assert json.loads(refused.stdout)["error"]["message"] == "top_k is 0, should be at least 1."


def test_run_keeps_the_outputs_of_arrays(bundle: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", input_ids=np.array([[1, 2, 3]]))
    result = invoke("run", bundle, "--inputs", tmp_path / "in.npz", "-o", tmp_path / "out.npz")

    assert "logits  [1, 3, 256]" in result.stdout
    assert np.load(tmp_path / "out.npz")["logits"].shape == (1, 3, 256)


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--prompt", "x", "--inputs", "x.npz"],
        ["--prompt", "x", "--out", "y.npz"],
        ["--inputs", "x.npz", "--jsonl"],
        ["--inputs", "x.npz", "--draft", "x"],
        ["--inputs", "x.npz", "--repetition-penalty", "2"],
    ],
)
def test_run_takes_a_prompt_or_arrays(bundle: Path, options: list[str]) -> None:
    assert invoke("run", bundle, *options).exit_code == 2


# A shell's background jobs, perhaps these tests among them, are started with SIGINT ignored.
INTERRUPTIBLE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from intaglio.cli import main
main()
"""


def test_an_interrupted_run_exits_130(bundle: Path) -> None:
    """What was generated stands; no traceback follows."""
    arguments = ["run", str(bundle), "--prompt=a", "--echo", "--steps=10000000"]
    with subprocess.Popen(
        [sys.executable, "-P", "-c", INTERRUPTIBLE, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        try:
            assert run.stdout is not None
            assert run.stdout.read(2)[0] == "a"
            run.send_signal(signal.SIGINT)
            out, err = run.communicate(timeout=60)
        finally:
            run.kill()

    assert (run.returncode, err) == (130, "intaglio: interrupted\n")
    assert out.endswith("\n")


def test_a_closed_pipe_ends_quietly(bundle: Path) -> None:
    """As in `intaglio run ... | head -c 2`."""
    script = (
        f"{sys.executable} -P -m intaglio run {bundle} --prompt=abc --echo --steps=9999 | head -c 2"
    )
    run = subprocess.run(["bash", "-c", script], capture_output=True, text=True)

    assert (run.stdout, run.stderr) == ("ab", "")


@pytest.mark.parametrize("kind", ["ops", "passes", "models", "targets"])
def test_list_gives_names(kind: str) -> None:
    entries = json.loads(invoke("list", kind, "--json").stdout)[kind]
    shown = invoke("list", kind).stdout

    assert entries
    assert all(entry["name"] in shown for entry in entries)


def test_an_adapter_is_made_and_run(checkpoint: Path, tmp_path: Path) -> None:
    """Of a tuned model, by rows; the bundle that it is switched in takes it by name or by file."""
    import torch

    tuned = torch.load(checkpoint)
    tuned["state_dict"]["layers.0.mlp.up_proj.weight"][[3, 5]] += 1
    torch.save(tuned, tmp_path / "tuned.pt")
    made = invoke("adapter", checkpoint, tmp_path / "tuned.pt", "-o", tmp_path / "a.npz", "--json")
    assert json.loads(made.stdout)["parts"]["layers.0.mlp.up_proj.weight"]["rows"] == [2]
    given = f"tuned={tmp_path / 'a.npz'}"
    ways = ("--adapters", "switched", "--steps", "8")
    done = invoke("export", checkpoint, "-o", tmp_path / "out", "--adapter", given, *ways)
    assert done.exit_code == 0, done.output
    texts = [
        invoke("run", tmp_path / "out", "--prompt", "1 2", "--steps", "4", *adapter).stdout
        for adapter in (["--adapter", "tuned"], ["--adapter", tmp_path / "a.npz"])
    ]
    assert texts[0] == texts[1]
    wrong = invoke("run", tmp_path / "out", "--prompt", "1 2", "--adapter", "none")
    assert (wrong.exit_code, "no adapter 'none'" in wrong.output) == (1, True)


def test_two_models_are_merged(checkpoint: Path, tmp_path: Path) -> None:
    done = invoke("merge", checkpoint, checkpoint, "-o", tmp_path / "merged.pt", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["distance"] == [{"before": 0.0, "after": 0.0}]


def test_stages_are_assembled(tmp_path: Path) -> None:
    """A file may be given for several stages; notes and a table tell what was done."""
    from intaglio.models.assembling import META, build
    from intaglio.models.model import save

    save(tmp_path / "meta.pt", "assembling", META, build(META))
    stages = 3 * [tmp_path / "meta.pt"]
    given: list[str | Path] = ["assemble", *stages, "-o", tmp_path / "out.pt"]
    done = invoke(*given, "--separate", "--image-size", "36", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [stage["depth"] for stage in found["stages"]] == [1, 1, 1]
    assert (found["config"]["separate"], found["config"]["image_size"]) == (True, 36)
    assert "is resized from [1, 17, 32] to [1, 37, 32]" in done.stderr
    assert invoke(*given).exit_code == 1
