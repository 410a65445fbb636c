"""How a bundle behaves beside its source: both answer a suite, with the same draws.

`runtime/behaviour.py` says what the suite holds and judges the answers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from intaglio.errors import InputError
from intaglio.exporter.sources.outputs import name_outputs
from intaglio.exporter.sources.picture_data import PictureInput
from intaglio.exporter.sources.source import Source
from intaglio.exporter.tracing.running import as_written
from intaglio.passes.base import Progress
from intaglio.quiet import quiet
from intaglio.runtime.behaviour import (
    Answer,
    Answers,
    BehaviourReport,
    Judge,
    Keywords,
    Question,
    compare,
)
from intaglio.runtime.graph_entry import TensorSpec
from intaglio.runtime.sampling import Sampling
from intaglio.runtime.session import Session

Array = npt.NDArray[Any]


class Words(Protocol):
    """Turns a question into tokens, and an answer back into text."""

    def encode(self, text: str) -> list[int]:
        """Tokens of a text."""

    def decode(self, token: int) -> str:
        """The text that one more token completes."""

    def finish(self) -> str:
        """What was held back."""


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How answers are made: `tokens` at most, `samples` of each, ended by a token of `stop`."""

    tokens: int = 64
    samples: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    stop: tuple[int, ...] = ()

    def answers(self, question: Question, number: int, words: Words, ask: "Ask") -> list[Answer]:
        """The answers to one question; `number` is its place, which the draws depend on."""
        found = []
        for sample in range(self.samples):
            random = np.random.default_rng((self.seed, number, sample))
            prompt = words.encode(question.text)
            if not prompt:
                raise InputError(f"The question of line {question.line} holds no token.")
            step, given = ask(question), prompt
            made: list[int] = []
            while len(made) < self.tokens:
                made.append(self.sampling.draw(step(given), random))
                if made[-1] in self.stop:
                    break
                given = made[-1:]
            shown = [token for token in made if token not in self.stop]
            text = "".join(words.decode(token) for token in shown) + words.finish()
            found.append(Answer(text=text, first=made[0]))
        return found


Ask = Callable[[Question], Callable[[Sequence[int]], Array]]
"""Of a question, what takes further tokens and gives the logits behind the last of them."""


def of_session(session: Session, logits: str) -> Ask:
    """How a bundle is asked."""
    token = session.entry.inputs[0].name

    def ask(question: Question) -> Callable[[Sequence[int]], Array]:
        session.state.reset()
        if session.entry.conditions:
            session.condition(_rows(question, [spec.name for spec in session.entry.conditions]))

        def step(tokens: Sequence[int]) -> Array:
            found: Array = session.step({token: np.array([tokens], np.int64)})[logits][0, -1]
            return found

        return step

    return ask


def of_source(source: Source, logits: str) -> Ask:
    """How a source is asked: all tokens so far at once, nothing carried."""
    token, *others = source.dynamic

    def ask(question: Question) -> Callable[[Sequence[int]], Array]:
        given = {n: torch.from_numpy(x) for n, x in _rows(question, others).items()}
        so_far: list[int] = []

        def step(tokens: Sequence[int]) -> Array:
            so_far.extend(tokens)
            inputs = {token: torch.tensor([so_far]), **given}
            with as_written(), quiet():
                found = name_outputs(source.module, source.module(**inputs), inputs)
            last: Array = found[logits][0, -1].float().numpy()
            return last

        return step

    return ask


def _rows(question: Question, names: Sequence[str]) -> Mapping[str, Array]:
    """What is given beside the text, each with one row.

    Raises:
        InputError: if the suite gives other arrays than the model takes.
    """
    if set(names) != set(question.arrays):
        raise InputError(
            f"Line {question.line} of the suite gives the arrays "
            f"{', '.join(question.arrays) or '(none)'}; the model takes "
            f"{', '.join(names) or '(none)'} beside text."
        )
    return {name: question.arrays[name][None] for name in names}


def _seen(question: Question, source: Source) -> Question:
    """The question with its pictures as arrays, read as those that a pass learns from.

    Raises:
        InputError: if one cannot be read, or it is not known what its pixels become.
    """
    arrays = dict(question.arrays)
    for name, path in question.pictures.items():
        try:
            arrays[name] = PictureInput.named(source, name, path).read([path])[name][0]
        except InputError as error:
            raise InputError(f"Line {question.line} of the suite: {error}") from error
    return replace(question, arrays=arrays, pictures={})


def _fitting(question: Question, specs: Sequence[TensorSpec]) -> Question:
    """The question with its arrays in the dtypes of what the bundle takes.

    Raises:
        InputError: if one has another shape, or other numbers.
    """
    _rows(question, [spec.name for spec in specs])
    arrays = {}
    for spec in specs:
        array, wanted = question.arrays[spec.name], spec.shape[1:]
        fits = array.ndim == len(wanted) and all(
            isinstance(dim, str) or dim == size
            for dim, size in zip(wanted, array.shape, strict=True)
        )
        if not fits or not np.can_cast(array.dtype, spec.dtype, "same_kind"):
            raise InputError(
                f"Line {question.line} of the suite gives {spec.name!r} as {array.dtype} "
                f"{list(array.shape)}; the model takes {spec.dtype} "
                f"[{', '.join(map(str, wanted))}]."
            )
        arrays[spec.name] = array.astype(spec.dtype)
    return replace(question, arrays=arrays)


def behave(
    session: Session,
    source: Source,
    questions: Sequence[Question],
    words: Words,
    asking: Asking,
    limits: Mapping[str, float],
    judge: Judge | None = None,
    progress: Progress | None = None,
) -> BehaviourReport:
    """Ask a bundle and its source the same questions, and judge what they answer.

    Args:
        session: of the bundle, a language model, perhaps with pictures as conditions.
        source: what it was exported from, loaded.
        questions: of a suite.
        words: turns questions into tokens, and answers back into text.
        asking: how answers are made.
        limits: how far figures may lie apart, by name.
        judge: says of an answer what it is; by words without one.
        progress: is told how far it is.

    Raises:
        InputError: if a question does not fit the model.
        OptionError: if a limit is of no figure.
    """
    logits = session.entry.outputs[0].name
    questions = [_fitting(_seen(each, source), session.entry.conditions) for each in questions]
    found: list[Answers] = []
    for place, ask in enumerate((of_source(source, logits), of_session(session, logits))):
        made = []
        for number, question in enumerate(questions):
            if progress is not None:
                who = "engine" if place else "source"
                said = f"answers of the {who}, {number + 1} of {len(questions)}"
                progress(said, (place + number / len(questions)) / 2)
            made.append(asking.answers(question, number, words, ask))
        found.append(made)
    source_answers, engine_answers = found
    return compare(
        questions, source_answers, engine_answers, judge or Keywords(), limits, asking.seed
    )
