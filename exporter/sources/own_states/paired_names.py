"""Which input and which output have names that say: this is what the other was a step ago.

The words that tell before from after (`in`, `out`, `past`, `present`, `prev`, `next`, ...) are
taken off both names, and what is left is compared: ``cache_in``/``cache_out``, ``h``/``hn``,
``state``/``stateN``, ``past_key``/``present_key``, or the same name.  A name says so only where a
word of it is one for states: an image that goes in and comes out is none.
"""

import re
from collections.abc import Iterable, Sequence

ROLES = frozenset(
    "in out input output past present prev previous next new old cur current updated init initial "
    "n last before after".split()
)
BEFORE = frozenset("past prev previous old last".split())
STATES = frozenset(
    "h c s hx cx hy cy hidden cell state states cache caches mem memory memories carry carried rnn "
    "lstm gru buffer buf history hist recurrent ssm conv kv pos offset count counter step t ctx "
    "context overlap tail ema running belief deter hiddens cells".split()
)
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_LETTER = re.compile(r"([hcs])(?:0|n|x|y|t|i|o|s)?")  # h0, hn, hx, hy, ht


def words(name: str) -> list[str]:
    """The words of a name, in small letters: those of ``stateN`` are state and n."""
    plain = name.replace("past_key_values", "past").replace("past_key_value", "past")
    return [word.lower() for word in _WORDS.findall(plain)]


def stem(name: str) -> tuple[str, ...]:
    """What is left of a name without the words that tell before from after."""
    found = []
    for word in words(name):
        letter = _LETTER.fullmatch(word)
        if letter:
            found.append(letter[1])
        elif word not in ROLES:
            found.append(word)
    if len(found) > 1 and found[-1] == "0" and _LETTER.fullmatch(found[0]):
        found.pop()  # h_0 beside h_n
    return tuple(found)


def says_state(name: str) -> bool:
    """Whether a word of `name` is one for states."""
    found = words(name)
    return any(word in STATES or word in BEFORE or _LETTER.fullmatch(word) for word in found)


def pair(inputs: Sequence[str], outputs: Sequence[Iterable[str]]) -> dict[str, int]:
    """The output, by its place, that each input's name belongs to.

    Args:
        inputs: names of inputs.
        outputs: for each output the names that it goes by.

    Returns:
        Those that belong to one output only, which belongs to no other input.
    """
    stems = [{stem(name) for name in names} for names in outputs]
    found = {}
    for name in inputs:
        mine = stem(name)
        fits = [place for place, theirs in enumerate(stems) if mine in theirs]
        rivals = [other for other in inputs if other != name and stem(other) == mine]
        if says_state(name) and len(fits) == 1 and not rivals and (mine or _only(name, outputs)):
            found[name] = fits[0]
    return found


def _only(name: str, outputs: Sequence[Iterable[str]]) -> bool:
    """Whether ``past`` alone stands beside ``present`` alone."""
    alone = {"present", "new", "next"}
    after = [n for names in outputs for n in names if set(words(n)) & alone and not stem(n)]
    return bool(set(words(name)) & BEFORE) and len(after) == 1
