"""The commands, one file each: parse, call one function of the library, print.

Everything beyond numpy, ONNX Runtime, typer and rich is imported by the command that needs it, so
that `--help` and the runtime's commands work without any extra.  Importing this package registers
them, in the order in which `--help` lists them.
"""

from . import export, build, run, verify, interpret, triton, profile, inspect  # noqa: F401, I001
from . import adapter, assemble, merge, subnet, sign, doctor, list_  # noqa: F401
