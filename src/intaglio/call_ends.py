"""Where calls of a step graph may end, if tokens of one block see each other.

A model that generates by scales, or by groups of tokens, looks ahead within a group and not beyond:
a call takes whole groups.  `ends` are the tokens after which one may end, in ascending order; none
where any may.
"""

from collections.abc import Sequence
from itertools import pairwise


def last_end(ends: Sequence[int], tokens: int) -> int:
    """The last place up to `tokens` where a call may end, or the first there is."""
    if not ends:
        return tokens
    return max((end for end in ends if end <= tokens), default=ends[0])


def lengths(ends: Sequence[int], begin: int, stop: int) -> list[int]:
    """How many tokens each call takes that goes as far as the next end, from `begin` to `stop`."""
    if not ends:
        return [1] * (stop - begin)
    places = [begin, *(end for end in ends if begin < end < stop), stop]
    return [after - before for before, after in pairwise(places)]
