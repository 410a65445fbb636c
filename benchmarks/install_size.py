"""How large an installation is: the runtime, and with each extra; a table, or JSON with `--json`.

    python benchmarks/install_size.py --json > benchmarks/results/install_size.json

Bytes of the files of every distribution that is needed, as they are installed here.
"""

import json
import re
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

EXTRAS = ("", "report", "text", "export", "hf")
ROOT = Path(__file__).parents[1]
ROOMS = ("src", "exporter", "models", "passes", "runtime", "trt_plugins")


def needed(name: str, extra: str, found: dict[str, Distribution]) -> None:
    """Add to `found` what a distribution needs, by name."""
    try:
        here = distribution(name)
    except PackageNotFoundError:  # of another platform
        return
    found[name] = here
    for line in here.requires or []:
        required, _, marker = line.partition(";")
        wanted = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
        if wanted is not None and wanted[1] != extra:
            continue
        spelled = re.match(r"([\w.-]+)(?:\[([\w,]+)\])?", required.strip())
        assert spelled is not None
        dependency = spelled[1].lower().replace("_", "-")
        for each in (spelled[2] or "").split(","):
            if dependency not in found or each:
                needed(dependency, each, found)


def size(each: Distribution) -> int:
    """Bytes of its files; ours are the source, which is what a wheel holds."""
    if each.name == "intaglio":
        files = [p for room in ROOMS for p in (ROOT / room).rglob("*.py")]
        return sum(path.stat().st_size for path in files)
    places = [Path(str(each.locate_file(file))) for file in each.files or []]
    return sum(path.stat().st_size for path in places if path.is_file() and path.suffix != ".pyc")


def main() -> None:
    """Print the sizes."""
    sizes: dict[str, dict[str, int]] = {}
    for extra in EXTRAS:
        found: dict[str, Distribution] = {}
        needed("intaglio", extra, found)
        sizes[extra or "runtime"] = {name: size(each) for name, each in sorted(found.items())}
    totals = {name: sum(each.values()) for name, each in sizes.items()}
    if "--json" in sys.argv:
        print(json.dumps({"bytes": totals, "runtime": sizes["runtime"]}, indent=1))
        return
    for name, total in totals.items():
        print(f"{name:<8} {total / 1e6:6.0f} MB in {len(sizes[name])} distributions")


if __name__ == "__main__":
    main()
