"""Fewer channels of 100M parameters by MoDeGPT: peak memory, progress, and going on after a kill.

    python benchmarks/compression_scale.py [--quick] [--json]

As `low_bit_scale.py` does with GPTQ: the process that gathers moments gets SIGKILL once half of
them are there, and a second one goes on.
"""

import torch
from evidence import Row, run
from low_bit_scale import interrupted

PASS = "modegpt:ratio=0.3"
MOMENTS = 4  # of a block: of channels, of queries, of keys, of values


def measure(quick: bool) -> list[Row]:
    """Rows for one model, of 17M parameters if `quick`."""
    return interrupted(quick, PASS, MOMENTS)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(__doc__, measure)
