"""A session that reads rows of tokens and scores what comes next, whatever the rows' lengths."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from intaglio.errors import InputError
from intaglio.runtime.arrays import Array
from intaglio.runtime.graph_entry import TensorSpec
from intaglio.runtime.session import Session
from intaglio.state import time_of

PROMPT_STEP = 512  # tokens of a prompt consumed at once, which bounds the memory of its logits


class TokenReader:
    """A session fit for generation.

    Attributes:
        session: whose state has consumed what was read.
        vocabulary: tokens that are scored; None where the manifest does not say.
        scores_each: whether each token that is read is scored, not the last of a step alone.
    """

    def __init__(self, session: Session, logits: str) -> None:
        """Read with `session`, whose output `logits` scores tokens.

        Raises:
            InputError: if the model does not take tokens alone, or gives no such output.
        """
        self.session = session
        self._name = _token_input(session, logits)
        self._logits = logits
        spec = next(spec for spec in session.entry.outputs if spec.name == logits)
        size = spec.shape[-1]
        self.vocabulary = size if isinstance(size, int) else None
        self.scores_each = time_of(spec.shape) is not None

    def past_length(self, rows: int) -> npt.NDArray[np.int64]:
        """Tokens that each row has consumed, int64 [rows], before the first step as well."""
        found = self.session.state.past_length
        return found if len(found) else np.zeros(rows, np.int64)

    def room(self, tokens: int) -> int:
        """Tokens that a row that holds `tokens` may still consume; a great number without bound."""
        most = self.session.state.most_tokens
        return np.iinfo(np.int64).max if most is None else most - tokens

    def step(self, tokens: npt.NDArray[np.int64], counts: npt.NDArray[np.int64] | None) -> Array:
        """Scores [batch, vocabulary] after one token for each row, those of `counts` 0 left out."""
        output = self.session.step({self._name: tokens[:, None]}, lengths=counts)
        return output[self._logits][:, -1]

    def read(self, tokens: Sequence[Sequence[int]], last: int = 1) -> list[Array]:
        """Consume `tokens`, none or more for each row.

        Returns:
            For each row the scores [n, vocabulary] after the last `last` of its tokens, or after
            all where there are fewer; after the last one alone where no others are scored.
        """
        lengths = np.array([len(row) for row in tokens])
        ids = np.zeros((len(tokens), lengths.max()), np.int64)
        for row, given in zip(ids, tokens, strict=True):
            row[: len(given)] = given
        found: list[list[Array]] = [[] for _ in tokens]
        for start in range(0, ids.shape[1], PROMPT_STEP):
            part = ids[:, start : start + PROMPT_STEP]
            counts = np.clip(lengths - start, 0, part.shape[1])
            ragged = None if counts.min() == part.shape[1] else counts
            output = self.session.step({self._name: part}, lengths=ragged)[self._logits]
            for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
                if count and not self.scores_each:
                    found[row] = [output[row]]
                elif count:
                    found[row].append(output[row, max(length - last - start, 0) : count])
        nothing = np.empty((0, 0), np.float32)
        return [
            nothing if not parts else parts[0] if len(parts) == 1 else np.concatenate(parts)
            for parts in found
        ]


def _token_input(session: Session, logits: str) -> str:
    """Name of the input of tokens, of a session fit for generation."""
    entry = session.entry
    if entry.whole:
        raise InputError(
            "Generation needs a model that goes on from what it has seen; this bundle takes whole "
            "sequences, in which each token sees all others. Call session.step with one."
        )
    names = [spec.name for spec in entry.inputs]
    if len(names) != 1 or len(entry.inputs[0].shape) != 2:
        raise InputError(
            f"Generation needs a model that takes tokens [batch, time] alone; this one takes "
            f"{', '.join(names)}. Call session.step yourself."
        )
    outputs = {spec.name: spec for spec in entry.outputs}
    if logits not in outputs or len(outputs[logits].shape) != 3:
        raise InputError(
            f"Generation needs logits [batch, time, vocabulary], and there is no such output "
            f"{logits!r}; the bundle gives {', '.join(map(_shaped, outputs.values()))}. Name one "
            "with logits=; a bundle that was exported with --last gives none for each token."
        )
    return names[0]


def _shaped(spec: TensorSpec) -> str:
    return f"{spec.name} [{', '.join(map(str, spec.shape))}]"
