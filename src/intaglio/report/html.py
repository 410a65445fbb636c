"""HTML that cannot be broken out of: whatever is not made here is text, and is escaped."""

import html
import re

# Control characters are no text in HTML; those that turn the direction of writing mislead.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


class Html(str):
    """Markup that goes into a page as it is."""

    __slots__ = ()


def visible(value: str) -> str:
    """The text with U+FFFD for what cannot be seen."""
    return _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", value)


def text(value: object) -> Html:
    """Anything as text, escaped unless it is markup already."""
    if isinstance(value, Html):
        return value
    return Html(html.escape(visible(str(value))))


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


def table(head: list[object], rows: list[list[object]], **attributes: object) -> Html:
    """A table that scrolls sideways where it is too wide; columns but the first hold numbers."""
    cells = [element("th", cell, scope="col") for cell in head]
    body = [
        element(
            "tr",
            *(
                element("th", cell, scope="row") if place == 0 else element("td", cell)
                for place, cell in enumerate(row)
            ),
        )
        for row in rows
    ]
    whole = element(
        "table", element("thead", element("tr", *cells)), element("tbody", *body), **attributes
    )
    return element("div", whole, class_="wide", tabindex="0")
