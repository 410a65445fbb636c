"""Which weights are trained, for modules that take gradients by them in their forward pass.

A source's parameters ask for no gradients, so that what it gives can be read as numbers.  A step of
meta-learning, or a loss on examples, fails then: there they keep the marks of their author, and a
part that is frozen stays so.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from intaglio.exporter.options.loading import Inputs
from intaglio.exporter.sources.examples import read_inputs
from intaglio.exporter.sources.own_states.kept import as_it_was
from intaglio.quiet import quiet


def trained(module: nn.Module) -> list[str]:
    """Names of the parameters that ask for gradients."""
    return [name for name, value in module.named_parameters() if value.requires_grad]


def mark_where_needed(module: nn.Module, names: Collection[str], inputs: Inputs | None) -> None:
    """Let the parameters of `names` ask for gradients if `module` runs on examples only then."""
    if inputs is None or not names or _runs(module, inputs):
        return
    for marks in (True, False):
        for name, value in module.named_parameters():
            value.requires_grad_(marks and name in names)
        if _runs(module, inputs):
            return


def _runs(module: nn.Module, inputs: Any) -> bool:
    """Whether `module` runs on examples; what it keeps, and wrote in place, is as it was."""
    held = [x for part in module.modules() for x in vars(part).values() if isinstance(x, Tensor)]
    kept = [(value, value.detach().clone()) for value in (*module.buffers(), *held)]
    try:
        with torch.no_grad(), quiet(), as_it_was(module):
            module(**{n: x.clone() for n, x in read_inputs(inputs, module).items()})
    except Exception:  # noqa: BLE001  modules raise whatever they like
        return False
    finally:
        with torch.no_grad():
            for value, before in kept:
                if not value.equal(before):
                    value.copy_(before)
    return True
