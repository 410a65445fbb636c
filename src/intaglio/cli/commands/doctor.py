"""`intaglio doctor`: what can be built and run here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from intaglio.cli import diagnosis
from intaglio.cli.console import Console
from intaglio.cli.frame import command
from intaglio.version import __version__


@command
def doctor_(
    console: Console,
    bundles: Annotated[
        list[Path] | None, typer.Argument(metavar="[BUNDLE]...", help="Can these run here?")
    ] = None,
) -> None:
    """Show what can be built and run here, and what is missing.

    Examples:
        intaglio doctor
        intaglio doctor bundle
    """
    found_here = diagnosis.diagnose()
    report = found_here.to_json()
    console.text(f"intaglio {__version__}, Python {report['python']}, {report['platform']}")
    for ability, found in report["can"].items():
        lack = f"no, missing {', '.join(found['missing'])}"
        console.text(f"{ability}: {'yes' if found['ok'] else lack}")
    console.text(
        "target ort: " + (found_here.engine_error or f"yes, with {', '.join(found_here.providers)}")
    )
    console.text(f"target trt: {_trt(found_here)}")
    console.text("\npackages")
    console.table(
        [
            [entry.name, entry.installed or "missing", f">={entry.minimum}", entry.extra or "-"]
            for entry in found_here.packages
        ],
        ["name", "installed", "asked for", "extra"],
    )
    found = {str(path): diagnosis.examine(path) for path in bundles or []}
    for path, targets in found.items():
        for target, faults in targets.items():
            console.text(f"\n{path}, target {target}: {'runs here' if not faults else 'does not'}")
            for fault in faults:
                console.text(f"  {fault}")
    console.result({**report, "bundles": found} if found else report)


def _trt(found_here: diagnosis.Diagnosis) -> str:
    """Which TensorRT can build here, and whether there is a GPU."""
    found = [f"{name} {version}" for name, version in found_here.flavours.items() if version]
    builds = f"builds with {' and '.join(found)}" if found else "builds nothing: none is installed"
    return f"{builds}; {_gpu(found_here.device)}"


def _gpu(device: Mapping[str, str] | None) -> str:
    if device is None:
        return "no GPU"
    if "error" in device:
        return f"a GPU: {device['error']}"
    return "{name}, compute capability {capability}, a driver for CUDA {cuda}".format(**device)
