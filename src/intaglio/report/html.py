"""HTML that cannot be broken out of: whatever is not made here is text, and is escaped."""

import html
from collections.abc import Mapping

from intaglio.runtime.plain_text import one_line


class Html(str):
    """Markup that goes into a page as it is."""

    __slots__ = ()


def text(value: object) -> Html:
    """Anything as text, escaped unless it is markup already."""
    if isinstance(value, Html):
        return value
    return Html(html.escape(one_line(str(value))))


def element(tag: str, *children: object, **attributes: object) -> Html:
    """One element; an attribute that is None is left out, ``class_`` and ``for_`` lose the dash."""
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{text(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Html(f"<{tag}{given}>{join(*children)}</{tag}>")


def join(*children: object) -> Html:
    """One after the other."""
    return Html("".join(text(child) for child in children))


def grouped(
    head: list[object], groups: list[tuple[object, list[list[object]]]], **attributes: object
) -> Html:
    """A table whose rows stand in groups, each under its name; under none where that is None."""
    bodies = [
        element(
            "tbody",
            *(
                [element("tr", element("th", name, colspan=len(head), scope="rowgroup"))]
                if name is not None
                else []
            ),
            *map(_row, rows),
        )
        for name, rows in groups
    ]
    return _scrolled(head, bodies, attributes)


def table(head: list[object], rows: list[list[object]], **attributes: object) -> Html:
    """A table that scrolls sideways where it is too wide; columns but the first hold numbers."""
    return _scrolled(head, [element("tbody", *map(_row, rows))], attributes)


def _row(row: list[object]) -> Html:
    first, *others = row
    return element(
        "tr", element("th", first, scope="row"), *(element("td", cell) for cell in others)
    )


def _scrolled(head: list[object], bodies: list[Html], attributes: Mapping[str, object]) -> Html:
    cells = [element("th", cell, scope="col") for cell in head]
    whole = element("table", element("thead", element("tr", *cells)), *bodies, **attributes)
    return element("div", whole, class_="wide", tabindex="0")
