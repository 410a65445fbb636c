"""`intaglio.profile`: measuring bundles, and their source in PyTorch beside them."""

import importlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from intaglio.errors import MissingExtraError
from intaglio.places import require_file

if TYPE_CHECKING:
    from intaglio.exporter.options.loading import LoadKeywords
    from intaglio.runtime import Bundle, ProfileSettings
    from intaglio.runtime.profile.report import ProfileReport
    from intaglio.runtime.profile.settings import Contestant

PathLike = str | os.PathLike[str]


def profile(
    bundle: PathLike,
    *others: PathLike,
    settings: "ProfileSettings | None" = None,
    against: PathLike | None = None,
    report: PathLike | None = None,
    progress: Callable[[str, float | None], None] | None = None,
    recipe: PathLike | None = None,
    **options: "Unpack[LoadKeywords]",
) -> "ProfileReport":
    """Measure bundles side by side: latencies, memory, operators; each in a fresh process.

    What was found about a bundle is kept in its `report.json` where that can be written.

    Args:
        bundle: the folder that `intaglio export` wrote; ratios are to this one.
        others: further bundles, which take the same inputs.
        settings: what to measure and how long.
        against: the source, to be measured in PyTorch; a path as for `intaglio.verify`.
        report: where to write a page for people; needs the extra ``report``.
        progress: is told what runs and the fraction of it that is done.
        recipe: what says how to load the source, in place of the bundle's own recipe.
        **options: how to load the source, as `intaglio.verify` takes them: model, config, key and
            the like; arrays in files.

    Raises:
        IntaglioError: whatever the user can mend: a bundle that cannot be opened, settings that it
            does not allow, a process that ended before it had answered.
    """
    from intaglio.runtime import Bundle, ProfileSettings
    from intaglio.runtime.profile.measure import profile as measure
    from intaglio.runtime.report_file import keep

    settings = settings or ProfileSettings()
    opened = [Bundle.open(path) for path in (bundle, *others)]
    page = None if report is None else _page(Path(report))
    peers: list[Contestant] = []
    if against is not None:
        peers.append(_eager(Path(against), opened[0], settings, options, recipe))
    found = measure(opened, settings, peers=peers, progress=progress)
    notes = [
        keep(entry, "profile", replace(found, measured=[measured]).to_json())
        for entry, measured in zip(opened, found.measured[: len(opened)], strict=True)
    ]
    found = replace(found, notes=[*found.notes, *filter(None, notes)])
    if page is not None and report is not None:
        page(found, Path(report))
    return found


def _page(path: Path) -> "Callable[[ProfileReport, Path], None]":
    """What writes the page, and whether it can, found before anything is measured for it."""
    require_file(path)
    try:
        importlib.import_module("matplotlib")
    except ModuleNotFoundError as error:
        raise MissingExtraError("A report page", "report") from error
    from intaglio.report.page import write_page

    return write_page


def _eager(
    source: Path,
    bundle: "Bundle",
    settings: "ProfileSettings",
    options: "LoadKeywords",
    recipe: PathLike | None,
) -> "Contestant":
    try:
        from intaglio.exporter.proving.eager import contestant
    except ModuleNotFoundError as error:
        raise MissingExtraError("Measuring a source in PyTorch", "export") from error
    words = None if recipe is None else Path(recipe)
    return contestant(source, bundle, settings.threads, options, words)
