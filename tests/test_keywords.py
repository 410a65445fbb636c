"""Options that are declared once show in every function that takes them."""

import inspect
from typing import Annotated, TypedDict, Unpack

import pytest

from intaglio.keywords import parameters, spelled_out


class First(TypedDict, total=False):
    width: Annotated[int | None, "how wide."]
    fast: Annotated[bool, "whether to hurry, " + "very " * 20 + "much."]


class Both(First, total=False):
    name: Annotated[str | None, "what it is called."]


@spelled_out
def paint(what: str, *, colour: str = "red", **options: Unpack[Both]) -> dict[str, object]:
    """Paint something.

    Args:
        what: the thing.
        colour: of the paint.
        **options: those of `Both`.

    Raises:
        OSError: if it is wet.
    """
    return {"what": what, "colour": colour, **options}


def test_the_options_stand_in_the_signature() -> None:
    """With their types and defaults, after the function's own."""
    assert str(inspect.signature(paint)) == (
        "(what: str, *, colour: str = 'red', width: int | None = None, fast: bool = False, "
        "name: str | None = None) -> dict[str, object]"
    )


def test_the_options_stand_in_the_docstring() -> None:
    """In place of the line on all of them; what follows stays."""
    lines = (paint.__doc__ or "").splitlines()

    assert lines[:6] == [
        "Paint something.",
        "",
        "Args:",
        "    what: the thing.",
        "    colour: of the paint.",
        "    width: how wide.",
    ]
    assert lines[6].startswith("    fast: whether to hurry, very")
    assert lines[7].startswith("        very")
    assert lines[8:] == [
        "    name: what it is called.",
        "",
        "Raises:",
        "    OSError: if it is wet.",
    ]
    assert max(map(len, lines)) <= 96


def test_calls_go_through_and_what_is_not_there_is_refused() -> None:
    """As Python itself refuses it."""
    assert paint("door", width=3) == {"what": "door", "colour": "red", "width": 3}
    with pytest.raises(TypeError, match=r"paint\(\) got an unexpected keyword argument 'widht'"):
        paint("door", widht=3)  # type: ignore[call-arg]


def test_what_an_option_carries_beside_its_type_is_kept_for_commands() -> None:
    """Their metadata is not text: it is how the option is typed."""
    [first, *_] = [p for p in parameters(paint.__wrapped__) if p.name == "width"]  # type: ignore[attr-defined]

    assert first.annotation == Annotated[int | None, "how wide."]
