"""Markup is made by functions; everything else is text."""

from intaglio.report.html import Html, element, join, table, text


def test_text_is_escaped_once() -> None:
    assert text('<a href="x">&</a>') == "&lt;a href=&quot;x&quot;&gt;&amp;&lt;/a&gt;"
    assert text(text("<")) == "&lt;"
    assert text(7) == "7"


def test_attributes_are_escaped_and_left_out_where_there_are_none() -> None:
    made = element("p", "x", title='"><b>', class_="a", lang=None)

    assert made == '<p title="&quot;&gt;&lt;b&gt;" class="a">x</p>'


def test_children_that_are_markup_stay() -> None:
    assert element("p", "<", element("b", "x")) == "<p>&lt;<b>x</b></p>"
    assert isinstance(join("a", Html("<br>")), Html)


def test_what_cannot_be_seen_is_replaced() -> None:
    """Control characters, half of a surrogate pair, and marks that turn the writing around."""
    assert text("a\x00b\u202ec\ud800") == "a\ufffdb\ufffdc\ufffd"
    assert text("a\nb\té\u061c\u2028") == "a\ufffdb\ufffdé\ufffd\ufffd"


def test_the_first_cell_of_a_row_is_its_head() -> None:
    made = table(["x", "ms"], [["<", 1]])

    assert '<th scope="row">&lt;</th><td>1</td>' in made
