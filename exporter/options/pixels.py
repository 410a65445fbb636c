"""How the pixels of a picture become what a vision model takes, in words that people know.

`mean` and `std` are those of torchvision's and timm's ``Normalize``, for pixels from 0 to 1, and
`crop_pct` and `interpolation` those of timm: the shorter side of a picture is scaled to the size of
the input over `crop_pct`, and the middle is cut out of it.  Files that already say so are read:
timm's ``config.json``, and ``preprocessor_config.json`` of the Hugging Face libraries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from intaglio.errors import OptionError
from intaglio.runtime.plain_files import parse_json, read_text

from .toml_text import parse_toml

SAMPLED = ("nearest", "bilinear", "bicubic")
RESAMPLE = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # numbers of Pillow
LEAST_STD = 1 / 256  # models that take 0 to 255 have a std of 1/255
LIKE = "--pixels imagenet, or --pixels 'mean=[0.5],std=[0.25]'"


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """(pixel / 255 - mean) / std, a number for each channel or one for all.

    Raises:
        OptionError: if a value cannot be one of pixels from 0 to 1.
    """

    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)
    crop_pct: float = 1.0
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        for name, least in (("mean", 0.0), ("std", LEAST_STD)):
            values = getattr(self, name)
            if not isinstance(values, list | tuple) or not values or not all(map(_number, values)):
                raise OptionError(
                    f"The {name} of pixels is {values!r}; give numbers: {name}=[0.485,0.456,0.406]."
                )
            if not all(least <= value <= 1 for value in values):
                raise OptionError(
                    f"The {name} of pixels is {list(values)}; pixels count from 0 to 1 there. "
                    "Divide what counts to 255 by it."
                )
        if not _number(self.crop_pct) or not 0 < self.crop_pct <= 1:
            raise OptionError(f"crop_pct is {self.crop_pct!r}; it is a share above 0, up to 1.")
        if self.interpolation not in SAMPLED:
            raise OptionError(
                f"The interpolation is {self.interpolation!r}; it is one of {', '.join(SAMPLED)}."
            )

    @classmethod
    def read(cls, given: "str | Path | Mapping[str, Any] | None") -> Self:
        """Of a name, a text, a file of JSON or a mapping; without any, pixels go from 0 to 1.

        Raises:
            OptionError: if it is none of these.
        """
        if given is None:
            return cls()
        if isinstance(given, Mapping):
            return cls._of(given)
        text = str(given)
        if text in KNOWN:
            return cls(**asdict(KNOWN[text]))
        return cls._of(_words(text) if "=" in text else _of_file(Path(text)))

    @classmethod
    def _of(cls, values: Mapping[str, Any]) -> Self:
        known = [entry.name for entry in fields(cls)]
        if wrong := values.keys() - set(known):
            raise OptionError(
                f"Pixels have no {', '.join(map(repr, sorted(wrong)))}; there are "
                f"{', '.join(known)}: {LIKE}."
            )
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """As a recipe holds it."""
        return asdict(self)


KNOWN = {
    "imagenet": Pixels(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop_pct=0.875),
    "inception": Pixels(mean=(0.5,), std=(0.5,), crop_pct=0.875),
    "clip": Pixels(
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
        interpolation="bicubic",
    ),
}
"""Those of torchvision's and most of timm's classifiers, of Inception and ViT, and of CLIP."""


def _words(text: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = parse_toml(f"pixels = {{{text}}}")["pixels"]
    except ValueError as error:
        raise OptionError(f"The pixels {text!r} cannot be read ({error}): give {LIKE}.") from error
    return found


def _of_file(path: Path) -> dict[str, Any]:
    """What timm's config, or a processor of Hugging Face, says."""
    try:
        said = parse_json(read_text(path))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise OptionError(
            f"The pixels {str(path)!r} are none of {', '.join(KNOWN)}, and no file of JSON "
            f"({why}): give {LIKE}."
        ) from error
    if isinstance(said, Mapping) and isinstance(said.get("pretrained_cfg"), Mapping):
        said = said["pretrained_cfg"]
    if not isinstance(said, Mapping) or not said.keys() & {
        "mean",
        "std",
        "image_mean",
        "image_std",
    }:
        raise OptionError(f"{path} says no mean and no std of pixels: give {LIKE}.")
    if "image_mean" in said or "image_std" in said:
        return _of_processor(said)
    own = [entry.name for entry in fields(Pixels)]
    return {name: said[name] for name in own if name in said}


def _of_processor(said: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if said.get("do_normalize", True):
        names = {"mean": "image_mean", "std": "image_std"}
        found = {name: said[theirs] for name, theirs in names.items() if theirs in said}
    short, cut = (
        value.get(key) if isinstance(value := said.get(name), Mapping) else None
        for name, key in (("size", "shortest_edge"), ("crop_size", "height"))
    )
    if _number(said.get("crop_pct")):
        found["crop_pct"] = said["crop_pct"]
    elif _number(short) and _number(cut) and said.get("do_center_crop", True):
        found["crop_pct"] = min(cut / short, 1)  # type: ignore[operator]
    if said.get("resample") in RESAMPLE:
        found["interpolation"] = RESAMPLE[said["resample"]]
    return found
