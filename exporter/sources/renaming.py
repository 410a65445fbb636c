"""What a module's own hooks make of a state dict: old names become new ones before they are held.

`nn.Module.load_state_dict` lets each submodule change the entries first; files of an earlier
version of the code fit only after that.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from intaglio.errors import SourceError
from intaglio.quiet import summary


def renamed(module: nn.Module, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of `tensors` after the hooks of `module`, which itself stays as it is.

    Raises:
        SourceError: if a hook raises.
    """
    entries = dict(tensors)
    for path, part in module.named_modules():
        prefix = f"{path}." if path else ""
        for hook in part._load_state_dict_pre_hooks.values():  # noqa: SLF001  PyTorch has no other
            try:
                hook(entries, prefix, {}, True, [], [], [])
            except Exception as error:
                raise SourceError(
                    f"The hook by which {type(part).__name__} {path!r} changes a state dict "
                    f"failed: {summary(error)}."
                ) from error
    return entries


@contextlib.contextmanager
def without_hooks(module: nn.Module) -> Iterator[None]:
    """While the context is open, `module` takes entries as they are: hooks may run once alone."""
    kept = []
    for part in module.modules():
        hooks = part._load_state_dict_pre_hooks  # noqa: SLF001
        kept.append((hooks, dict(hooks)))
        hooks.clear()
    try:
        yield
    finally:
        for hooks, own in kept:
            hooks.update(own)
