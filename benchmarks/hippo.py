"""What the bases of HiPPO hold of a long signal: LegS, LegT and FouT beside other state matrices.

    python benchmarks/hippo.py [--quick] [--json]

Smooth noise of 12,000 tokens (a Gaussian of 8 tokens) runs through 64 states each.  Nothing is
trained.  First the state at the end is read with the functions of its basis, and the error of the
signal so told, under the measure of the basis, is compared with that which the theory gives (Gu et
al. 2022, arXiv:2206.12037, section 4); the median of many ends.  Of LegS that is the error of the
best approximation by these functions.  Of a window it is more: what leaves at its far end has to be
forgotten, and A forgets what the functions say was there, which is off by what they leave out.  So
coefficients differ from the best ones c by e' = A e + p(2)/2 r(t), with r = u(t - 2) - p(2) c for
LegT, and of FouT, whose series gives at a jump from end to end what lies halfway,
r = u(t) + u(t - 2) - 2 p(2) c.  Then a ridge regression from the state tells the input of some
tokens ago: R2.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from evidence import Row, run

from intaglio.models.parts import hippo

TOKENS, QUICK_TOKENS, STATES = 12_000, 6000, 64
DELAYS = (10, 50, 100, 200, 400, 800)
STEPS = {"legs": 0.002, "legt": 0.001, "fout": 0.001}
NEAR = 0.02  # of the error that the theory gives
RIDGE = 1e-8

Array = npt.NDArray[np.float64]


def measure(quick: bool) -> list[Row]:
    """The rows of each basis, then those of each state matrix."""
    torch.set_num_threads(1)
    signal = smooth_noise(QUICK_TOKENS if quick else TOKENS)
    rows = [row for basis in hippo.BASES for row in _told(basis, signal)]
    for name, (step, into) in systems().items():
        held_states = held(step, into, signal)
        states = np.concatenate((held_states.real, held_states.imag), 1)
        found = [_r2(states, signal, delay) for delay in DELAYS]
        note = ", ".join(f"{d}: {r:.2f}" for d, r in zip(DELAYS, found, strict=True))
        rows.append(
            Row(
                name=f"{name}: mean R2 of delays", value=float(np.mean(found)), unit="R2", note=note
            )
        )
    return rows


def smooth_noise(tokens: int) -> Array:
    """Gaussian noise under a Gaussian window, of variance 1."""
    window = np.exp(-0.5 * (np.arange(-40, 41) / 8) ** 2)
    noise = np.random.default_rng(0).standard_normal(tokens + 80)
    found = np.convolve(noise, window, "valid")
    return np.asarray(found / found.std())


def systems() -> dict[str, tuple[npt.NDArray[np.inexact], npt.NDArray[np.inexact]]]:
    """State matrices and what they take of a token: dense, or poles alone."""
    made: dict[str, tuple[npt.NDArray[np.inexact], npt.NDArray[np.inexact]]] = {}
    for basis in hippo.BASES:
        step, into = hippo.zero_order_hold(*hippo.transition(basis, STATES), STEPS[basis])
        made[basis] = step.numpy(), into.numpy()
    for kind in ("lin", "real"):
        poles = hippo.diagonal_poles(kind, STATES).numpy()
        ratio = np.exp(0.001 * poles)
        made[f"S4D-{kind}"] = ratio, (ratio - 1) / poles
    drawn = np.random.default_rng(1)
    made["random poles"] = drawn.uniform(0, 1, STATES), np.ones(STATES)
    dense = drawn.standard_normal((STATES, STATES)) / math.sqrt(STATES)
    made["random matrix"] = 0.95 * dense, drawn.standard_normal(STATES)
    return made


def held(
    step: npt.NDArray[np.inexact], into: npt.NDArray[np.inexact], signal: Array
) -> npt.NDArray[np.inexact]:
    """The states after every token [T, N]."""
    state, rows = np.zeros_like(into), []
    for token in signal:
        state = (step @ state if step.ndim == 2 else step * state) + into * token
        rows.append(state)
    return np.array(rows)


def _told(basis: str, signal: Array) -> list[Row]:
    """The error of what a state tells against the best there is, and against the theory's."""
    dt = STEPS[basis]
    step, into = (x.numpy() for x in hippo.zero_order_hold(*hippo.transition(basis, STATES), dt))
    states = held(step, into, signal)
    length = min(len(signal) // 2, int((8 if basis == "legs" else hippo.WINDOW) / dt))
    past = np.linspace(0.5 * dt, (length - 0.5) * dt, length)
    functions = FUNCTIONS[basis](past)
    weight: Array = np.exp(-past) if basis == "legs" else np.ones(length)
    weight = weight / weight.sum()
    off = np.zeros_like(states) if basis == "legs" else _off(basis, signal, functions)
    found = []
    for end in range(length, len(signal), 97):
        seen = signal[end - length + 1 : end + 1][::-1]
        root = np.sqrt(weight)
        best = np.linalg.lstsq(functions * root[:, None], seen * root, rcond=None)[0]
        told, least, wanted = (
            float(np.sqrt((weight * (functions @ state - seen) ** 2).sum()))
            for state in (states[end], best, best + off[end])
        )
        found.append((told, least, wanted))
    ours, least, theory = np.median(found, axis=0)
    return [
        Row(
            name=f"{basis}: error of the past, told : best",
            value=float(ours / least),
            unit="ratio",
            note=f"{ours:.3f} of the signal's deviation, of {length} tokens; best {least:.3f}",
        ),
        Row(
            name=f"{basis}: error of the past, told : the theory's",
            value=float(ours / theory),
            unit="ratio",
            target=f"1, within {NEAR:g}",
            holds=bool(abs(ours / theory - 1) <= NEAR),
            note=f"{theory:.3f} of the signal's deviation",
        ),
    ]


def _off(basis: str, signal: Array, functions: Array) -> Array:
    """By how much coefficients differ from the best ones after each token [T, N], by the theory."""
    dt, (length, _) = STEPS[basis], functions.shape
    far = FUNCTIONS[basis](np.array([hippo.WINDOW]))[0]
    best = np.stack([np.convolve(signal, row)[: len(signal)] for row in functions.T / length], 1)
    before = np.concatenate((np.zeros((1, STATES)), best[:-1]))
    left = np.concatenate((np.zeros(length), signal[:-length]))  # what leaves the window
    shown = (best + before) / 2 @ far
    missed = left - shown if basis == "legt" else signal + left - 2 * shown
    A = hippo.transition(basis, STATES)[0]
    step, into = (x.numpy() for x in hippo.zero_order_hold(A, torch.from_numpy(far / 2), dt))
    return np.asarray(held(step, into, missed))


def _legendre(x: Array) -> Array:
    values = np.polynomial.legendre.legvander(x, STATES - 1)
    return np.asarray(values * np.sqrt(2 * np.arange(STATES) + 1))


def _waves(past: Array) -> Array:
    found = np.zeros((len(past), STATES))
    for j in range(STATES // 2):
        angle = math.pi * j * past
        found[:, 2 * j], found[:, 2 * j + 1] = np.cos(angle), np.sin(angle)
    found *= math.sqrt(2)
    found[:, 0] = 1
    return found


FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "legs": lambda past: _legendre(2 * np.exp(-past) - 1),
    "legt": lambda past: _legendre(1 - past),
    "fout": _waves,
}


def _r2(states: Array, signal: Array, delay: int) -> float:
    """How much of the input `delay` tokens ago a linear reading of states explains."""
    x, y = states[max(DELAYS) :], signal[max(DELAYS) - delay : len(signal) - delay]
    x = x / np.maximum(x.std(0), 1e-12)
    half = len(x) // 2
    gram = x[:half].T @ x[:half] + RIDGE * half * np.eye(x.shape[1])
    told = x[half:] @ np.linalg.solve(gram, x[:half].T @ y[:half])
    return max(0.0, 1 - float(((told - y[half:]) ** 2).mean() / y[half:].var()))


if __name__ == "__main__":
    run(__doc__, measure)
