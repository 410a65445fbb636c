"""One row of a generation: its tokens, how they are drawn, and where they end."""

from collections.abc import Collection, Iterable, Sequence

import numpy as np

from intaglio.runtime.arrays import Array
from intaglio.runtime.sampling import Probabilities, Sampling, draw_from


class SampledRow:
    """A row with a random stream of its own.

    Attributes:
        made: tokens generated so far.
        ended: whether one of the endings has come.
        done: whether it has, or there are as many tokens as were asked for.
    """

    def __init__(
        self,
        sampling: Sampling,
        endings: Sequence[tuple[int, ...]],
        random: np.random.Generator,
        prompt: Sequence[int],
        count: int,
    ) -> None:
        self.made: list[int] = []
        self.ended = self.done = False
        self._sampling = sampling
        self._endings = endings
        self._random = random
        self._prompt = prompt
        self._count = count
        self._held = set(prompt)

    @property
    def left(self) -> int:
        """Tokens that it may still get."""
        return self._count - len(self.made)

    @property
    def length(self) -> int:
        """Tokens of the prompt, and those generated."""
        return len(self._prompt) + len(self.made)

    def after(self, count: int) -> list[int]:
        """Its tokens, those of the prompt included, after the first `count`."""
        beyond = count - len(self._prompt)
        return self.made[beyond:] if beyond >= 0 else [*self._prompt[count:], *self.made]

    def count(self, tokens: Iterable[int]) -> None:
        """Let penalties count tokens that came before the prompt."""
        self._held.update(map(int, tokens))

    def append(self, token: int) -> None:
        """Take `token` as the next one."""
        self._held.add(token)
        self.made.append(token)
        self.ended = any(tuple(self.made[-len(end) :]) == end for end in self._endings)
        self.done = self.ended or not self.left

    def draw(self, scores: Array) -> int:
        """A token by its `scores` [vocabulary], which is appended."""
        token = self._sampling.draw(scores, self._random, self._with(()))
        self.append(token)
        return token

    def propose(self, scores: Array, before: Sequence[int]) -> tuple[int, Probabilities]:
        """A token that may follow `before`, which are proposed, too, and what it was drawn from."""
        chances = self._sampling.probabilities(scores, self._with(before))
        return draw_from(chances, self._random), chances

    def verified(
        self, scores: Array, proposed: Sequence[int], chances: Sequence[Probabilities]
    ) -> list[int]:
        """The first of the `proposed` tokens that are accepted, and one more.

        A token x that was drawn from q is accepted with probability min(1, p(x) / q(x)); in place
        of the first that is not comes one from max(0, p - q), made to sum to 1, and after all of
        them one from p.  So each follows p, whatever q is.

        Args:
            scores: [len(proposed) + 1, vocabulary], of the model that decides.
            proposed: tokens that `propose` gave one after the other.
            chances: what each was drawn from.

        Source: Leviathan et al. 2023, arXiv:2211.17192, algorithm 1; Chen et al. 2023,
            arXiv:2302.01318, algorithm 2.
        """
        taken: list[int] = []
        for row, token, q in zip(scores, proposed, chances, strict=False):
            p = self._sampling.probabilities(row, self._with(taken))
            if self._random.random() * q[token] < p[token]:
                taken.append(token)
                continue
            rest = np.maximum(p - q, 0)
            return [*taken, draw_from(rest if rest.any() else p, self._random)]
        p = self._sampling.probabilities(scores[-1], self._with(taken))
        return [*taken, draw_from(p, self._random)]

    def _with(self, tokens: Sequence[int]) -> Collection[int]:
        """What the penalty holds for once `tokens` follow; nothing where there is none."""
        return self._held.union(tokens) if self._sampling.repetition_penalty != 1 else ()
