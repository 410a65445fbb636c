"""HTML that cannot be broken out of: whatever is not made here is text, and is escaped."""

import html

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
