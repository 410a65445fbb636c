"""The child of `intaglio.runtime.tokenizer_process`: the library of tokenizers, within limits.

It runs as a program of its own, and is the only one of ours that imports the library.
"""

import functools
import json
import resource
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from intaglio.errors import InputError, MissingExtraError

SECONDS = 8  # of processor time for a request, and more for long texts
MEMORY = 1 << 30  # bytes of address space that a tokenizer may take
BASE = 1 << 30  # bytes that Python, numpy and the library map, where no system says


class _Child:
    """What the child does; the library is imported in it alone."""

    def __init__(self) -> None:
        self._tokenizer: Any = None

    def load(self, content: str) -> int:
        try:
            import tokenizers
        except ModuleNotFoundError as error:
            raise MissingExtraError("A tokenizer", "text") from error
        _limit_memory(MEMORY + 32 * len(content))
        _limit_time(SECONDS + len(content) // 1_000_000)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content)
        except Exception as error:
            raise InputError(f"The tokenizer cannot be read: {error}.") from error
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=0)

    def text(self) -> str:
        _limit_time(SECONDS)
        return str(self._tokenizer.to_str())

    def encode(self, text: str, special: bool) -> list[int]:
        _limit_memory(MEMORY + 128 * len(text))
        _limit_time(SECONDS + len(text) // 100_000)
        try:
            return list(self._tokenizer.encode(text, add_special_tokens=special).ids)
        except Exception as error:
            raise InputError(f"The tokenizer fails on the text: {error}.") from error

    def chat(self, template: str, values: dict[str, Any]) -> str:
        try:
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ModuleNotFoundError as error:
            raise MissingExtraError("A chat template", "text") from error
        _limit_memory(MEMORY + 128 * (len(template) + len(str(values))))
        _limit_time(SECONDS)
        sandbox = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        sandbox.filters["tojson"] = _to_json
        sandbox.globals.update(raise_exception=_refuse, strftime_now=_now)
        try:
            return str(sandbox.from_string(template).render(**values))
        except MemoryError as error:
            raise InputError("The chat template takes more memory than one may.") from error
        except Exception as error:
            said = str(error).rstrip(".") or type(error).__name__
            raise InputError(f"The chat template fails: {said}.") from error

    def decode(self, tokens: list[int]) -> str:
        _limit_time(SECONDS)
        try:
            return str(self._tokenizer.decode(tokens))
        except Exception as error:
            raise InputError(f"The tokenizer fails on the tokens: {error}.") from error


def _to_json(value: Any, **options: Any) -> str:
    """As templates are written for: letters as they are, nothing escaped for HTML."""
    return json.dumps(value, ensure_ascii=False, **options)


def _refuse(message: str) -> None:
    """What a template calls where a conversation does not fit it."""
    raise ValueError(message)


def _now(form: str) -> str:
    return datetime.now(tz=UTC).strftime(form)


@functools.cache
def _base() -> int:
    """Bytes that this process maps when it is first asked: before it reads anything."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError):
        return BASE
    return pages * resource.getpagesize()


def _limit_time(seconds: int) -> None:
    """End this process if it works for so many seconds more."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = int(usage.ru_utime + usage.ru_stime) + 1 + seconds
    soft = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _limit_memory(most: int) -> None:
    """Let this process map `most` bytes beyond what it has before it reads anything."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    soft = most + _base()
    soft = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def main() -> None:
    """Answer the parent until it closes the channel."""
    from intaglio.runtime.child_worker import serve

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    child = _Child()
    methods = ("load", "text", "encode", "decode", "chat")
    serve({name: getattr(child, name) for name in methods})


if __name__ == "__main__":
    main()
