"""`intaglio.export` and `intaglio.verify` import the exporter when they are first used."""

import subprocess
import sys
from pathlib import Path

import pytest

import intaglio
from intaglio.errors import MissingExtraError, reason


def test_importing_intaglio_imports_no_extra() -> None:
    """A device that only runs bundles never pays for PyTorch."""
    script = "import sys, intaglio; print({'torch', 'onnx', 'onnx_ir'} & set(sys.modules))"
    run = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True
    )

    assert run.stdout.strip() == "set()"


def test_export_and_verify_are_those_of_the_exporter() -> None:
    """The package lists them, and knows nothing else by this way."""
    from intaglio.exporter.export import export
    from intaglio.exporter.proving.verify import verify

    assert intaglio.export is export
    assert intaglio.verify is verify
    assert dir(intaglio) == ["Graph", "__version__", *sorted(FACADE)]
    with pytest.raises(AttributeError, match="has no attribute 'exprot'"):
        intaglio.exprot  # noqa: B018


def test_what_the_system_says_is_a_part_of_a_sentence(tmp_path: Path) -> None:
    """No number of an error; a file where a folder should be is called that."""
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(NotADirectoryError) as there:
        (file / "x").mkdir(parents=True, exist_ok=True)
    with pytest.raises(FileNotFoundError) as absent:
        (tmp_path / "absent").read_bytes()

    assert reason(there.value).endswith("file is a file, not a folder")
    assert reason(absent.value) == f"No such file or directory: {tmp_path / 'absent'}"
    assert reason(OSError(28, "No space left on device")) == "No space left on device"


FACADE = {"export", "get_include", "profile", "verify"}


@pytest.mark.parametrize("name", ["export", "verify"])
@pytest.mark.parametrize("absent", ["torch", "onnx"])
def test_an_absent_extra_is_named(name: str, absent: str) -> None:
    """With the command that installs it."""
    script = f"import sys; sys.modules[{absent!r}] = None; import intaglio; intaglio.{name}"
    run = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True)

    assert MissingExtraError.__name__ in run.stderr
    assert f"intaglio.{name} needs the extra 'export'" in run.stderr
    assert "pip install 'intaglio[export]'" in run.stderr
