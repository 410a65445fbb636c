"""A name that is not there comes with the known one that was perhaps meant."""

from intaglio.spelling import perhaps


def test_the_near_name_is_told_whatever_its_case() -> None:
    assert perhaps("Tager", ["MLP", "Tagger"]) == ", perhaps 'Tagger'"
    assert perhaps("ORT", ("ort", "trt")) == ", perhaps 'ort'"
    assert perhaps("quux", ["ort"]) == ""
