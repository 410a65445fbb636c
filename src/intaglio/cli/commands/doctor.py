"""`intaglio doctor`: what can be built and run here."""

from intaglio import __version__
from intaglio.cli import doctor
from intaglio.cli.console import Console
from intaglio.cli.frame import command


@command
def doctor_(console: Console) -> None:
    """Show what can be built and run here, and what is missing."""
    diagnosis = doctor.diagnose()
    report = diagnosis.to_json()
    console.text(f"intaglio {__version__}, Python {report['python']}, {report['platform']}")
    for ability, found in report["can"].items():
        lack = f"no, missing {', '.join(found['missing'])}"
        console.text(f"{ability}: {'yes' if found['ok'] else lack}")
    console.text(
        "target ort: " + (diagnosis.engine_error or f"yes, with {', '.join(diagnosis.providers)}")
    )
    console.text(f"target trt: {_trt(diagnosis)}")
    console.text("\npackages")
    console.table(
        [
            [entry.name, entry.installed or "missing", f">={entry.minimum}", entry.extra or "-"]
            for entry in diagnosis.packages
        ],
        ["name", "installed", "asked for", "extra"],
    )
    console.result(report)


def _trt(diagnosis: doctor.Diagnosis) -> str:
    """Which TensorRT can build here, and whether there is a GPU."""
    found = [f"{name} {version}" for name, version in diagnosis.flavours.items() if version]
    device = "a GPU" if diagnosis.has_device else "no GPU"
    if not found:
        return f"builds no engine: no TensorRT is installed; {device}"
    return f"builds with {' and '.join(found)}; {device}; runs no engine yet"
