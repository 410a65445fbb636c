"""SeqBoat's steps that skip attention: how many, and how long they take.

    python benchmarks/seqboat.py [--quick] [--json]

Two layers of width 256, keys of 64 and values of 512, a window of 128 active tokens, random weights
whose router prefers not to attend; one row, one thread.  After 4,096 tokens each step is timed and
told apart by how many of its layers attend, as PyTorch's module says of the same tokens.  Beside
that the share of tokens that the router of the trained checkpoint leaves out of attention.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from evidence import Row, run
from torch import Tensor

import intaglio
from intaglio.models.seqboat import SEQBOAT, Config, SeqBoat, SeqBoatLayer, build
from intaglio.quiet import quiet
from intaglio.runtime import Session

CONFIG = Config(
    hidden_size=256, key_size=64, value_size=512, window=128, input_size=16, output_size=16
)
CHECKPOINT = Path(__file__).parents[1] / "models" / "checkpoints" / "seqboat.pt"
BEFORE, STEPS, QUICK_BEFORE, QUICK_STEPS = 4096, 600, 512, 100
CHUNK = 256
STEEP, AGAINST = 40.0, 2.0  # of the router: how far apart its choices lie, how few attend
GAIN = 2.0  # a step without attention against one with all of it


def measure(quick: bool) -> list[Row]:
    """Shares, and times of steps by how many layers attend."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = build(CONFIG).eval()
    with torch.no_grad():
        for layer in _layers(module):
            layer.hx_proj.weight[:2] *= STEEP
            layer.hx_proj.bias[0] = AGAINST
    before, steps = (QUICK_BEFORE, QUICK_STEPS) if quick else (BEFORE, STEPS)
    drawn = torch.Generator().manual_seed(1)
    signal = SEQBOAT.inputs(CONFIG, 1, before + steps, drawn)["signal"]
    attends = _active(module, signal)[0, before:].sum(-1).numpy()
    with tempfile.TemporaryDirectory() as folder:
        with quiet():
            given = SEQBOAT.inputs(CONFIG, 2, 16, drawn)
            intaglio.export(module, Path(folder) / "bundle", inputs=given, steps=64)
        seconds = _stepped(Path(folder) / "bundle", signal.numpy(), before)
    layers = CONFIG.num_layers
    times = [1e3 * float(np.median(seconds[attends == n])) for n in range(layers + 1)]
    rows = [
        Row(
            name=f"steps in which {count} of {layers} layers attend",
            value=times[count],
            unit="ms",
            note=f"{(attends == count).mean():.0%} of {steps}, after {before} tokens",
        )
        for count in range(layers + 1)
    ]
    gain = times[-1] / times[0]
    rows.append(
        Row(
            name="a step with attention : one without",
            value=gain,
            unit="ratio",
            target=f">= {GAIN:g}",
            holds=gain >= GAIN,
        )
    )
    return [*rows, _trained()]


def _layers(module: SeqBoat) -> list[SeqBoatLayer]:
    return [layer for layer in module.seq_layers if isinstance(layer, SeqBoatLayer)]


def _active(module: SeqBoat, signal: Tensor) -> Tensor:
    """Which layers attend for which tokens [B, T, layers]."""
    found: list[Tensor] = []
    hooks = [
        layer.q_router.register_forward_hook(lambda _, __, told: found.append(told[0]))
        for layer in _layers(module)
    ]
    with torch.no_grad():
        module(signal)
    for hook in hooks:
        hook.remove()
    return torch.stack(found, -1)


def _stepped(bundle: Path, signal: np.ndarray, before: int) -> np.ndarray:
    """Seconds of each step after `before` tokens."""
    session = Session.load(bundle, threads=1)
    for first in range(0, before, CHUNK):
        session.step({"signal": signal[:, first : first + CHUNK]})
    seconds = []
    for at in range(before, signal.shape[1]):
        start = time.perf_counter()
        session.step({"signal": signal[:, at : at + 1]})
        seconds.append(time.perf_counter() - start)
    return np.array(seconds)


def _trained() -> Row:
    """What the router of the checkpoint does on the task that it was trained on."""
    saved = torch.load(CHECKPOINT, weights_only=True)
    config = SEQBOAT.configure(saved["config"])
    module = build(config).eval()
    module.load_state_dict(saved["state_dict"])
    assert SEQBOAT.recipe is not None
    draw = SEQBOAT.recipe.draw  # type: ignore[attr-defined]
    signal, _ = draw(config.input_size, 64, torch.Generator().manual_seed(1))
    return Row(
        name="tokens that the trained checkpoint leaves out of attention",
        value=1 - float(_active(module, signal).float().mean()),
        unit="share",
        note="selective copying, mean of its layers",
    )


if __name__ == "__main__":
    run(__doc__, measure)
