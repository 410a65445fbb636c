"""While a module is captured, code that cannot be traced is exchanged for what says the same.

What is known of layers of torch.nn is in `torch_layers`, of libraries in `mixers` and `experts`;
`replace` finds where they are used, compares and patches.
"""

from contextlib import AbstractContextManager

from torch import nn

from intaglio.exporter.sources.huggingface.directory import FORMAT as HUGGINGFACE
from intaglio.exporter.sources.source import Source

from .experts import EXPERTS
from .mixers import MIXERS
from .replace import replaced
from .torch_layers import FUNCTIONS, LAYERS

COMPARED = (2, 7, 0)  # rows, tokens and seed of what replacements are compared on


def exchanged(source: Source, module: nn.Module) -> AbstractContextManager[bool]:
    """Let `module`, that of `source` or a copy, use operators while the context is open.

    The context yields whether there is one to use.

    Raises:
        TraceError: if a replacement does not give what the original gives, see `replaced`.
    """
    known = {**MIXERS, **EXPERTS} if source.format.startswith(HUGGINGFACE) else {}
    inputs = source.inputs if source.whole else source.random_inputs(*COMPARED)
    return replaced(module, inputs, LAYERS, {**FUNCTIONS, **known})
