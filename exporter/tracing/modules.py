"""Which module of a source is running: hooks that follow the calls of a forward pass."""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from torch import fx, nn
from torch.utils.hooks import RemovableHandle

Observer = Callable[[str, Any], None]


class ModuleStack:
    """Paths of the modules that are running, innermost last, while the context is open.

    After a forward pass that raised, `current` is the module that raised.  `observer` is called
    at every entry and exit with the path of the module that ran until then, and the output of
    that module at its exit, None at entries.
    """

    def __init__(self, root: nn.Module, observer: Observer | None = None) -> None:
        self._root = root
        self._observer = observer
        self._paths: list[str] = []
        self._handles: list[RemovableHandle] = []

    @property
    def current(self) -> str:
        """Path of the innermost running module, empty for the root or outside any call."""
        return self._paths[-1] if self._paths else ""

    def __enter__(self) -> Self:
        for path, module in self._root.named_modules():
            self._handles.append(module.register_forward_pre_hook(self._entry(path)))
            self._handles.append(module.register_forward_hook(self._exit))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _entry(self, path: str) -> Callable[[nn.Module, Any], None]:
        def enter(_module: nn.Module, _args: Any) -> None:
            self._observe(None)
            self._paths.append(path)

        return enter

    def _exit(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self._observe(output)
        self._paths.pop()

    def _observe(self, output: Any) -> None:
        if self._observer is not None:
            self._observer(self.current, output)


def named(path: str) -> str:
    """A module in an error's words."""
    return f"module {path!r}" if path else "the model itself"


def path_of(node: fx.Node) -> str:
    """Path of the module that a node of a program was captured in."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack else ""
