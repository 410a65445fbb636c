"""`report.json` of a bundle: what the last verification and the last profile found.

One object, whose keys are `report_version` and, as far as they have run, `verify` and `profile`;
each section tells the version of intaglio that wrote it, and when.  No hash covers the file:
nothing that runs a bundle reads it.
"""

import datetime as dt
import json
from collections.abc import Mapping
from typing import Any

from intaglio.runtime.bundle import REPORT, Bundle
from intaglio.runtime.plain_files import read_json
from intaglio.version import __version__
from intaglio.whole_files import replacing

VERSION = 1


def read_report(bundle: Bundle) -> dict[str, Any]:
    """The object in the bundle's report; empty where there is none, or none that can be read.

    Raises:
        BundleError: if the file leads out of the bundle.
    """
    try:
        content = read_json(bundle.locate(REPORT))
    except (OSError, ValueError):
        return {}
    known = isinstance(content, dict) and content.get("report_version") == VERSION
    return content if known else {}


def keep(bundle: Bundle, section: str, found: Mapping[str, Any]) -> str | None:
    """Put `found` into the bundle's report as `section`, in place of what stood there.

    Returns:
        None, or why it could not be written: what was found is worth as much without.

    Raises:
        BundleError: if the file leads out of the bundle.
    """
    now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    content = {
        **read_report(bundle),
        "report_version": VERSION,
        section: {"intaglio": __version__, "taken": now, **found},
    }
    path = bundle.root / REPORT
    try:
        with replacing(path) as draft:
            draft.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        return f"{path} cannot be written: {error.strerror}."
    return None
