"""Checkpoints whose weights came quantized: a file per format, each with `read` and `write`.

What `read` makes of a projection's tensors, `write` turns into the same bytes again.  Which format
a checkpoint has, its ``quantization_config`` says, or the names of its tensors.
"""

from . import awq, decoupleq, gptq, hqq
from .stored import StoredWeight, stored_weight
from .take import FORMATS, take

__all__ = ["FORMATS", "StoredWeight", "awq", "decoupleq", "gptq", "hqq", "stored_weight", "take"]
