"""What `intaglio verify --behaviour` does: read the suite, ask both, show the figures."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intaglio.errors import OptionError

from .console import Console

if TYPE_CHECKING:
    from intaglio.runtime import Bundle
    from intaglio.runtime.behaviour import BehaviourReport, Judge


def judge_from(text: str, *, allow_code: bool) -> "Judge":
    """The judge that ``FILE.py:NAME`` names: a class or a function that makes one.

    Raises:
        OptionError: if code is not allowed, or the file defines no such judge.
    """
    file, _, name = text.rpartition(":")
    if not file.endswith(".py") or not name.isidentifier():
        raise OptionError(f"--judge {text} is not FILE.py:NAME, as judges.py:Strict.")
    if not allow_code:
        raise OptionError(f"--judge {text} runs code. Where it is trusted, allow it: --allow-code.")
    spec = importlib.util.spec_from_file_location("judge", file)
    if spec is None or spec.loader is None or not Path(file).is_file():
        raise OptionError(f"--judge {text}: there is no file {file}.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        made: Any = getattr(module, name)()
    except Exception as error:
        raise OptionError(f"--judge {text} raised {type(error).__name__}: {error}.") from error
    for method in ("refuses", "is_gibberish", "is_unsafe"):
        if not callable(getattr(made, method, None)):
            raise OptionError(f"--judge {text} has no method {method!r}.")
    judge: Judge = made
    return judge


def behaviour_of(
    console: Console,
    bundle: "Bundle",
    against: Path,
    suite: Path,
    limits: dict[str, float],
    asked: dict[str, Any],
    options: Any,
) -> "BehaviourReport":
    """Compare a bundle with its source on a suite, as the command says it.

    Args:
        console: is told how far it is.
        bundle: what was opened of it.
        against: the source.
        suite: the file of questions.
        limits: how far figures may lie apart.
        asked: target, graph, judge, stop, tokens, samples, temperature, top_p, seed and recipe.
        options: how to load the source.
    """
    from intaglio.exporter.proving.answers import Asking, behave
    from intaglio.exporter.proving.as_made import as_made
    from intaglio.exporter.sources.load import load
    from intaglio.runtime import Session
    from intaglio.runtime.behaviour import check_limits, read_suite
    from intaglio.runtime.sampling import Sampling

    from .chat import Texts

    check_limits(limits)
    judge = asked["judge"] and judge_from(asked["judge"], allow_code=bool(options["allow_code"]))
    questions = read_suite(suite)
    session = Session.load(bundle, asked["target"], graph=asked["graph"] or "main")
    words = Texts.of(session).codec(session.entry)
    ends = [ids[0] for ids in words.endings(asked["stop"] or []) if len(ids) == 1]
    asking = Asking(
        tokens=asked["tokens"],
        samples=asked["samples"],
        sampling=Sampling(temperature=asked["temperature"], top_p=asked["top_p"]),
        seed=asked["seed"],
        stop=tuple(ends),
    )
    with console.progress("verify") as progress:
        source = load(against, as_made(options, session.manifest, asked["recipe"]))
        return behave(session, source, questions, words, asking, limits, judge, progress)


def show(console: Console, report: "BehaviourReport") -> None:
    """The figures as a table, and the verdict."""
    rows = [
        [
            figure.name,
            str(figure.count),
            f"{figure.source:.3f}",
            f"{figure.engine:.3f}",
            f"{figure.engine - figure.source:+.3f} [{figure.low:+.3f}, {figure.high:+.3f}]",
            f"{figure.limit:g}",
            "yes" if figure.passed else "NO",
        ]
        for figure in report.figures
    ]
    heads = ["figure", "questions", "source", "engine", "difference [95 %]", "limit", "holds"]
    console.table(rows, heads)
    console.text(report.summary())
