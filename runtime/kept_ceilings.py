"""What devices reach at best is measured once for each, and kept in the user's cache."""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict

from intaglio.runtime import user_cache
from intaglio.runtime.work import Ceilings


def kept(key: Sequence[object], measure: Callable[[], Ceilings], *, keep: bool = True) -> Ceilings:
    """The ceilings of what `key` names, measured where that was not done before.

    `keep` is whether another run may stand on what is measured now.
    """
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    path = user_cache.folder("ceilings") / f"{name}.json"
    try:
        return _read(path.read_bytes())
    except (OSError, ValueError, TypeError, AttributeError):  # not there, or not whole
        found = measure()
    if keep:
        with suppress(OSError):
            user_cache.put(path, json.dumps(asdict(found)).encode())
    return found


def _read(content: bytes) -> Ceilings:
    found = Ceilings(**json.loads(content))
    if not all(rate > 0 for rate in (found.bytes, *found.operations.values())):
        raise ValueError(content)
    return found
