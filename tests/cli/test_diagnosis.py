"""The doctor knows what intaglio asks for, what is installed, and what that allows."""

import importlib.metadata

import pytest
from gpu import Driver

from intaglio.cli import diagnosis
from intaglio.errors import DeviceError
from intaglio.runtime.trt import driver
from intaglio.runtime.trt.driver import Device


def test_every_requirement_is_examined() -> None:
    """What pyproject.toml asks for appears with its lower bound and its extra."""
    found = {entry.name: (entry.minimum, entry.extra) for entry in diagnosis.diagnose().packages}

    assert found["numpy"] == ("1.26", "")
    assert found["onnx-ir"] == ("1.1", "export")


def test_what_is_missing_or_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch and with an old onnx, bundles run and exporting does not."""
    versions = {"torch": None, "onnx": "1.9.0"}
    monkeypatch.setattr(diagnosis, "_installed", lambda name: versions.get(name, "99.0"))
    can = diagnosis.diagnose().to_json()["can"]

    assert can["run"] == {"ok": True, "missing": []}
    assert can["export"] == {"ok": False, "missing": ["torch>=2.11", "onnx>=1.22"]}


def test_hugging_face_directories_need_three_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without tokenizers neither they nor text can be had; export goes on."""
    versions = {"tokenizers": None}
    monkeypatch.setattr(diagnosis, "_installed", lambda name: versions.get(name, "99.0"))
    can = diagnosis.diagnose().to_json()["can"]

    assert can["export"]["ok"]
    assert (
        can["run_text"]["missing"] == can["export_huggingface"]["missing"] == ["tokenizers>=0.20"]
    )


def test_tensorrt_is_told_apart_from_what_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which flavour is installed, and whether there is a GPU."""
    versions = {"tensorrt": None, "tensorrt-rtx": "1.7.1"}
    monkeypatch.setattr(diagnosis, "_installed", lambda name: versions.get(name, "99.0"))
    monkeypatch.setattr(diagnosis, "has_device", lambda: False)
    found = diagnosis.diagnose().to_json()

    assert found["targets"]["trt"] == {
        "flavours": {"tensorrt": None, "rtx": "1.7.1"},
        "device": None,
    }
    assert found["can"]["export_tensorrt"]["ok"]


def test_a_gpu_is_told_with_what_engines_need_to_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name, its compute capability, and the CUDA of its driver."""
    monkeypatch.setattr(diagnosis, "has_device", lambda: True)
    monkeypatch.setattr(driver, "open_device", lambda: Device(Driver(87)))
    found = diagnosis.diagnose().to_json()["targets"]["trt"]["device"]

    assert found == {"name": "Stand-in GPU", "capability": "8.7", "cuda": "13.1"}


def test_a_gpu_that_cannot_be_opened_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without cuda-bindings, or with a driver that fails."""

    def broken() -> None:
        raise DeviceError("The CUDA driver's cuInit failed: 3.")

    monkeypatch.setattr(diagnosis, "has_device", lambda: True)
    monkeypatch.setattr(driver, "open_device", broken)

    assert diagnosis.diagnose().device == {"error": "The CUDA driver's cuInit failed: 3."}


def test_every_extra_is_known() -> None:
    """Whoever adds one to pyproject.toml says what it is for; dev is for those who work here."""
    provided = importlib.metadata.metadata("intaglio").get_all("Provides-Extra") or []

    assert set(provided) - {"dev"} == diagnosis.EXTRAS


def test_versions_are_compared_as_numbers() -> None:
    """2.9 is older than 2.11, and a local version part does not count."""
    assert not diagnosis.Package("torch", "export", "2.11", "2.9.1").ok
    assert diagnosis.Package("torch", "export", "2.11", "2.13.0+cpu").ok


def test_a_broken_engine_is_told_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError(f"{name}: libfoo.so is missing")

    monkeypatch.setattr(importlib, "import_module", broken)

    assert diagnosis.diagnose().engine_error == "onnxruntime: libfoo.so is missing"


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("torch", "export"),
        ("onnx_ir", "export"),
        ("tokenizers", "text"),
        ("matplotlib", "report"),
        ("transformers", "hf"),
        ("numpy", None),
        ("x", None),
    ],
)
def test_the_extra_that_brings_a_module_is_known(module: str, extra: str | None) -> None:
    assert diagnosis.extra_of(module) == extra


def test_the_installed_version_is_read() -> None:
    numpy = next(entry for entry in diagnosis.diagnose().packages if entry.name == "numpy")

    assert numpy.installed == importlib.metadata.version("numpy")
