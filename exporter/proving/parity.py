"""What a verification found: one row per output or state and way of splitting the tokens."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from intaglio.runtime.compare import Deviation

from .bisect import Divergence
from .coverage import Coverage
from .quantized import MOVED

OUTPUT, STATE, KL = "output", "state", "mean divergence of next tokens"
QUANTIZATION = "what the new weights moved,"
ONE_PART, TWO_PARTS = ("fast", "mixed"), "fine"
INT8_ACTIVATIONS = (*ONE_PART, TWO_PARTS)
"""What a lowering may have made that rounds activations to 8 bits: all or some of them once."""
ROUNDED = (
    "The bundle rounds activations to 8 bits: an export with --ort-accuracy fine takes them in two "
    "parts, one with exact tells whether that is all, and --tolerance NAME=VALUE accepts it."
)
ROUNDED_FINELY = (
    "The bundle takes activations in two parts of 8 bits: an export with --ort-accuracy exact "
    "tells whether rounding is at work at all, and --tolerance NAME=VALUE accepts it."
)
MOVED_ADVICE = (
    "the weights are those of the source, {less} or data (--calib, --data) bring it down, and "
    "--tolerance "
)
LESS = {"Quantization": "more bits, smaller groups", "Compression": "a smaller ratio"}
RANDOM = " Random inputs bear it worse than real ones: give some with --data."


@dataclass(frozen=True, kw_only=True)
class Row:
    """One output or state against the source, the tokens given as `split` says.

    `against` tells what it was compared with, `module` the owner of a state.  Steps count tokens.
    """

    kind: str
    module: str
    split: str
    against: str
    found: Deviation

    @property
    def who(self) -> str:
        """The stream in a sentence."""
        owner = f" of module {self.module!r}" if self.module else ""
        return f"{self.kind} {self.found.name!r}{owner}"

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "name": self.found.name,
            "kind": self.kind,
            "module": self.module,
            "split": self.split,
            "against": self.against,
            **self.found.to_json(),
        }


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """A bundle against its source over `steps` tokens of `batch` rows, split in several ways.

    `against` names the source, `precision` what it ran in, and `cause` why that is not float64
    where it is not; `seed` drew the inputs, or they are
    from `data`, which is its SHA-256.  `unknown` lists states that do not follow from the source;
    they are compared between splits only.  `divergence` is the first node at fault, where it was
    asked for and found.  Where the bundle has weights of few bits, `against` is the source with its
    weights dequantized, and `quantization` tells how far that moved each output of the source
    itself, at most; a row of the kind `QUANTIZATION` holds what it moved in the mean to a limit.
    `accuracy` is how the bundle multiplies by them, None without any.  `covers` says how far it was
    tried.  Of a graph of whole inputs (`whole`), steps are calls, and splits their sizes.
    `rounding` tells, where parity fails, how far each output of the source as it is is from the
    same in float64.
    """

    against: str
    precision: str
    steps: int
    batch: int
    seed: int | None
    splits: Sequence[str]
    rows: Sequence[Row]
    cause: str = ""
    data: str | None = None
    unknown: Sequence[str] = ()
    divergence: Divergence | None = None
    quantization: Mapping[str, float] | None = None
    accuracy: str | None = None
    covers: Coverage | None = None
    whole: bool = False
    rounding: Mapping[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether anything was compared, and all of it stayed within its limit."""
        return bool(self.rows) and not self.failures

    @property
    def failures(self) -> list[Row]:
        """The rows beyond their limits, and those of what is NaN in every row."""
        defined = {row.found.name for row in self.rows if not row.found.vacuous}
        return [row for row in self.rows if not (row.found.passed and row.found.name in defined)]

    @property
    def too_coarse(self) -> bool:
        """Whether it fails, and rounding activations to 8 bits once may be all the fault."""
        errors = [row.found.error for row in self.failures]
        if any(row.kind == QUANTIZATION for row in self.failures):
            return False
        return self.accuracy in ONE_PART and bool(errors) and all(map(math.isfinite, errors))

    @property
    def worst(self) -> Row:
        """The row nearest to its limit, or farthest beyond it."""
        return max(self.failures or self.rows, key=_excess)

    @property
    def ran_in(self) -> str:
        """The precision of the source, and why it is no higher."""
        return f"{self.precision}: {self.cause}" if self.cause else self.precision

    def __repr__(self) -> str:
        """In short: ``ParityReport('Parity holds over ...')``."""
        return f"ParityReport({self.summary()!r})"

    def summary(self) -> str:
        """One or two sentences for people."""
        rows = "random rows" if self.data is None else "rows of the data"
        what = f"{self.steps} steps of {self.batch} {rows}"
        if self.whole:
            what = f"{self.steps} calls with {'random inputs' if self.data is None else 'the data'}"
        scope = f"{what} against {self.against} ({self.ran_in})"
        worst, found = self.worst, self.worst.found
        numbers = f"error {found.error:.1e}, limit {found.limit:.0e}"
        if self.passed:
            prefill = (
                f" {len(self.unknown)} states were compared with one call of all tokens alone."
            )
            return (
                f"Parity holds over {scope}: the largest is {worst.who} ({numbers}).{self._moved()}"
                f"{prefill if self.unknown else ''}{self._undefined()}"
                f"{self.covers.words() if self.covers is not None else ''}"
            )
        if worst.kind == QUANTIZATION:
            return (
                f"{self._what} moved {worst.found.name.removesuffix(MOVED)!r} of {self.against} by "
                f"{found.error:.2f} of its size in the mean ({scope}), the limit being "
                f"{found.limit:g}: where {MOVED_ADVICE.format(less=LESS[self._what])}"
                f"{found.name}=VALUE accepts it."
            )
        if found.vacuous:
            return (
                f"Parity over {scope} says nothing of {worst.who}: the source gives NaN alone. "
                "Give inputs for which it does not: --inputs, --data."
            )
        failed = {row.found.name for row in self.failures}
        where = f"after token {found.worst_step}, split {worst.split}"
        where = f"at {worst.split}" if self.whole else where
        cause = f" {self.divergence.summary()}" if self.divergence is not None else ""
        if self.accuracy in INT8_ACTIVATIONS:
            rounding = ROUNDED_FINELY if self.accuracy == TWO_PARTS else ROUNDED
            cause += f" {rounding}{'' if self.data else RANDOM}"
        return (
            f"Parity fails over {scope}: of outputs and states {len(failed)} differ, most of all "
            f"{worst.who} {where} ({numbers}).{cause}{self._rounded()}"
        )

    @property
    def _what(self) -> str:
        """What changed the weights, by whether the bundle has some of few bits."""
        return "Quantization" if self.accuracy is not None else "Compression"

    def _moved(self) -> str:
        if self.quantization is None:
            return ""
        found = (f"{name} {error:.1e}" for name, error in self.quantization.items())
        return f" {self._what} itself moved the source's outputs: {', '.join(found)}."

    def _rounded(self) -> str:
        """What rounding makes of the source itself, where that is beyond the limit as well."""
        limits = {row.found.name: row.found.limit for row in self.failures}
        found = {n: e for n, e in self.rounding.items() if e > limits.get(n, math.inf)}
        if not found:
            return ""
        name = max(found, key=lambda each: found[each])
        if math.isinf(found[name]):
            return (
                f" The source itself gives NaN or infinities for {name!r} in float32 on the same "
                "inputs, and none in float64: a number in it grows with the tokens until it "
                "overflows, as the exponential of a sum over all of them does. Take what "
                "is divided out again within the exponent, exp(a - b) for exp(a) / exp(b), or "
                "give gates to torch.ops.intaglio.linear_attention as logarithms."
            )
        return (
            f" Rounding alone takes the source itself {found[name]:.1e} from its own output "
            f"{name!r} in float64 on the same inputs, which is beyond that limit too: fewer tokens "
            f"(--steps) compare what comes before, and --tolerance {name}=VALUE accepts it."
        )

    def _undefined(self) -> str:
        names = sorted({row.found.name for row in self.rows if row.found.undefined})
        if not names:
            return ""
        what = ", ".join(map(repr, names))
        return f" The source itself gives NaN at times, the bundle in the same places of {what}."

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values, for the manifest."""
        return {
            "passed": self.passed,
            "against": self.against,
            "precision": self.precision,
            "cause": self.cause,
            "steps": self.steps,
            "batch": self.batch,
            "whole": self.whole,
            "seed": self.seed,
            "data": self.data,
            "splits": list(self.splits),
            "rows": [row.to_json() for row in self.rows],
            "unknown": list(self.unknown),
            "divergence": None if self.divergence is None else self.divergence.to_json(),
            "covers": None if self.covers is None else self.covers.to_json(),
            "quantization": None if self.quantization is None else dict(self.quantization),
        }


def _excess(row: Row) -> float:
    """The error in units of its limit; what is no number exceeds any."""
    found = row.found
    if math.isnan(found.error):
        return math.inf
    return found.error / found.limit if found.limit else found.error
