"""Causal mixers as their papers' code and their users write them, a file for each kind.

A kind is a file that ends in `MIXERS`, and an entry of `KINDS` here.
"""

from . import loops, pairs, recurrences, scans, scores, streams
from .mixer import Mixer

KINDS: dict[str, tuple[Mixer, ...]] = {
    "loops": loops.MIXERS,
    "pairs": pairs.MIXERS,
    "recurrences": recurrences.MIXERS,
    "scans": scans.MIXERS,
    "scores": scores.MIXERS,
    "streams": streams.MIXERS,
}
