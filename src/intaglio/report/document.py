"""A page: one file that loads nothing and runs nothing."""

from importlib import resources

from .html import Html, element, join

# Even if a name got through unescaped, a browser would run and load nothing.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def document(title: str, *parts: object) -> str:
    """A page of `parts`, in the pages' own style."""
    style = resources.files(__package__).joinpath("style.css").read_text(encoding="utf-8")
    head = join(
        Html('<meta charset="utf-8">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        element("title", title),
        element("style", Html(style)),
    )
    body = element("body", element("main", *filter(None, parts)))
    return f'<!doctype html>\n<html lang="en">{element("head", head)}{body}</html>\n'
