"""Which target runs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from intaglio.errors import BundleError
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.engines import choose_target

MakeBundle = Callable[..., Path]


@pytest.mark.parametrize(
    ("target", "message"),
    [("npu", "cannot run the target 'npu'; it runs: ort, trt"), ("trt", "--target trt")],
)
def test_a_target_that_cannot_be_run_is_refused(
    make_bundle: MakeBundle, target: str, message: str
) -> None:
    """With the names of those that are run, or how the bundle gets it."""
    with pytest.raises(BundleError, match=message):
        choose_target(Bundle.open(make_bundle("conv")).graph(), target)


def test_a_bundle_without_any_target_to_run_says_so(make_bundle: MakeBundle) -> None:
    """Rather than failing on a missing file."""
    bundle = make_bundle("conv")
    path = bundle / "manifest.json"
    entry = json.loads(path.read_text())
    entry["graphs"]["main"]["targets"] = {}
    path.write_text(json.dumps(entry))

    with pytest.raises(BundleError, match=r"it has: none\. Export it with --target ort"):
        choose_target(Bundle.open(bundle).graph(), "auto")
