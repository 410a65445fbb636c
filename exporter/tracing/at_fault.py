"""Which module it is that fails, where a model does not run on its own example inputs."""

import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from intaglio.errors import TraceError
from intaglio.quiet import summary


def run_examples(module: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
    """What the module gives for its example inputs.

    Raises:
        TraceError: if it fails on them, with the innermost module that does.
    """
    within: list[str] = []
    names = {each: name for name, each in module.named_modules() if name}
    hooks = [
        hook
        for each, name in names.items()
        for hook in (
            each.register_forward_pre_hook(lambda *_, name=name: within.append(name)),
            each.register_forward_hook(lambda *_: within.pop() and None),
        )
    ]
    try:
        with torch.no_grad():
            return module(**inputs)
    except Exception as error:
        sizes = ", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items())
        place = (
            f"its module {within[-1]!r} ({type(module.get_submodule(within[-1])).__name__})"
            if within
            else "its own forward"
        )
        raise TraceError(
            f"The model fails on its example inputs, {sizes}: {place} raises "
            f"{summary(error)}{line_of(error)}. "
            "Mend it, or give inputs that it takes: --inputs FILE.npz, and --axes where their axes "
            "were guessed wrongly."
        ) from error
    finally:
        for hook in hooks:
            hook.remove()


def line_of(error: Exception) -> str:
    """Where in the user's own code it raised, empty when that is nowhere."""
    frame = own_line(error)
    return "" if frame is None else f" ({Path(frame.filename).name}:{frame.lineno})"


def own_line(error: Exception) -> traceback.FrameSummary | None:
    """The innermost line that raised and is neither PyTorch's nor the exporter's."""
    library = str(Path(torch.__file__).parent)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((library, str(Path(__file__).parents[1])))
    ]
    return frames[-1] if frames else None
