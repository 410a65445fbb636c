"""Which tensors of a checkpoint are projections of few bits, and what they say."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from torch import Tensor

from intaglio.errors import SourceError

from . import awq, decoupleq, gptq, hqq
from .stored import StoredWeight

FORMATS: tuple[ModuleType, ...] = (gptq, awq, hqq, decoupleq)
METHODS = {module.METHOD: module for module in FORMATS}


def take(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None
) -> tuple[dict[str, Tensor], dict[str, StoredWeight]]:
    """Split `tensors` into those that stay as they are, and projections by their module's path.

    `config` is the quantization_config, None where there is none.  Biases are in both.

    Raises:
        SourceError: if the method is not read, or a projection is not whole; it is named.
    """
    unsaid = any(name.endswith("." + decoupleq.MARK) for name in tensors)
    if not config and not unsaid:
        return dict(tensors), {}
    config = config or {"quant_method": decoupleq.METHOD}
    if not isinstance(config, Mapping):
        raise SourceError("the quantization_config is no table of keys and values.")
    method = str(config.get("quant_method"))
    if method not in METHODS:
        raise SourceError(
            f"weights quantized by {method!r} are not read; {', '.join(METHODS)} are. Export the "
            "checkpoint that they were made from, in fp32, fp16 or bf16."
        )
    form = METHODS[method]
    paths = [name[: -len(form.MARK) - 1] for name in tensors if name.endswith("." + form.MARK)]
    found: dict[str, StoredWeight] = {}
    taken: set[str] = set()
    for path in paths:
        own = {f"{path}.{part}": part for part in form.PARTS}
        parts = {part: tensors[name] for name, part in own.items() if name in tensors}
        if (bias := tensors.get(f"{path}.bias")) is not None:
            parts["bias"] = bias
        try:
            found[path] = form.read(parts, config)
        except SourceError as error:
            raise SourceError(f"{path}: {error}") from error
        except (TypeError, ArithmeticError, LookupError, AttributeError, ValueError) as error:
            said = f"the quantization_config does not say how its tensors are read ({error})."
            raise SourceError(f"{path}: {said}") from error
        taken.update(own)
    return {name: x for name, x in tensors.items() if name not in taken}, found
