"""How `--help` looks: options in groups, examples at the end, one spelling and one form of default.

An option has one spelling here, with dashes.  Those that bear the name of an option of trtexec have
that spelling too; it is understood everywhere, and told once below the group.
"""

import re
from typing import Any, Protocol

import typer
from typer.core import TyperCommand, TyperGroup

from intaglio.spelling import perhaps

REST = "Options"  # the group of what stands in none
EVERYWHERE = "Everywhere"

# Groups in their order; those of `FURTHER` in the commands that are named there alone.
GROUPS: dict[str, str] = {
    "Bundle": "out target recipe layout no-portable dry-run force",
    "Graphs and passes": "graph pass calib work kv ort-accuracy dtype",
    "Shapes": "min-shapes opt-shapes max-shapes shapes",
    "TensorRT": "flavour sm require-target",
    "What is measured": "context prompt-length batch threads capacity",
    "How long": "warm-up duration iterations percentile",
    "Proof": "data tolerance steps thorough lowered bisect check-passes no-verify require-parity",
    "Behaviour": "behaviour judge answer-tokens samples temperature top-p seed stop",
    "Drawing": "temperature top-k top-p min-p repetition-penalty seed guidance",
    "Search": "budget evaluations seed jobs ray report",
    "Source": "model config key import-from inputs axes whole last state condition "
    "adapter adapters bits pixels",
    "Trust": "allow-code allow-pickle require-signature",
    EVERYWHERE: "json verbose quiet debug help",
}
FURTHER: dict[str, set[str]] = {
    "Bundle": {"export"},
    "Graphs and passes": {"export"},
    "Shapes": {"export"},
    "TensorRT": {"export"},
    "What is measured": {"profile"},
    "How long": {"profile"},
    "Proof": {"export", "verify"},
    "Behaviour": {"verify"},
    "Drawing": {"run"},
    "Search": {"export", "subnet"},
    "Source": {"export", "verify", "profile", "adapter", "merge"},
}
COMMANDS = {
    "Bundles": "export build sign verify inspect",
    "Running": "run profile interpret triton",
    "Models": "adapter assemble merge subnet",
    "This installation": "doctor list",
}

_LETTERS = {"<int>": "N", "<int range>": "N", "<float>": "X", "<float range>": "X"}
_ALIAS = re.compile(r", (--[a-z]+[A-Z]\w*)")


class Formatter(Protocol):
    """What help is written to: click's, which typer brings along in newer versions."""

    def section(self, name: str) -> Any:
        """Indent what is written within."""

    def write(self, string: str) -> None:
        """Write as it stands."""

    def write_dl(self, rows: list[tuple[str, str]]) -> None:
        """Write terms and what they mean."""


class Command(TyperCommand):
    """A command whose help is grouped; `epilog` holds its examples, a line each."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """Name the arguments as people write them."""
        given = [_argument(p) for p in self.params if p.param_type_name == "argument"]
        return ["[OPTIONS]", *given]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments, then options by group."""
        out: Formatter = formatter
        arguments = [
            (_argument(p), p.help)
            for p in self.params
            if p.param_type_name == "argument" and hasattr(p, "help")
        ]
        if arguments:
            with out.section("Arguments"):
                out.write_dl(arguments)
        options = [p for p in self.get_params(ctx) if p.param_type_name == "option"]
        groups: dict[str, list[Any]] = {title: [] for title in (REST, *GROUPS)}
        for option in options:
            groups[group_of(str(self.name), _name(option))].append(option)
        for title, members in groups.items():
            records = [_record(p, ctx) for p in members if not p.hidden]
            if not records:
                continue
            with out.section(title):
                out.write_dl([record for record, _ in records])
                aliases = ", ".join(alias for _, found in records for alias in found)
                if aliases:
                    out.write(f"  As trtexec spells them: {aliases}\n")

    def make_context(self, *args: Any, **more: Any) -> Any:
        """As usual, but a choice that is none is told with the one that was perhaps meant."""
        try:
            return super().make_context(*args, **more)
        except typer.BadParameter as error:
            error.message = _chosen(error.message)
            raise

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Write the examples as they stand."""
        _examples(formatter, self.epilog)


class Group(TyperGroup):
    """The program: its commands in groups."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write each command with its whole summary."""
        out: Formatter = formatter
        names = dict.fromkeys(self.list_commands(ctx))
        for title, members in COMMANDS.items():
            with out.section(title):
                rows = [(name, self.commands[name]) for name in members.split() if name in names]
                out.write_dl([(name, str(each.help).partition("\n")[0]) for name, each in rows])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Write the examples as they stand."""
        _examples(formatter, self.epilog)


def group_of(command: str, name: str) -> str:
    """The group that an option of a command stands in."""
    for title, names in GROUPS.items():
        if name in names.split() and command in FURTHER.get(title, {command}):
            return title
    return REST


def split_examples(text: str) -> tuple[str, str]:
    """What a docstring says, and its examples, a line each."""
    said, _, examples = text.partition("\nExamples:\n")
    return said.strip(), "\n".join(line.strip() for line in examples.strip().splitlines())


def _chosen(message: str) -> str:
    """``'statik' is not one of 'static', 'grow'``, with what was perhaps meant."""
    found = re.fullmatch(r"(?:Value error, )?'(.*?)' is not one of (.*?)\.?", message, re.DOTALL)
    if found is None:
        return message
    known = re.findall(r"'([^']*)'", found[2])
    return f"{found[1]!r} is not one of {found[2]}{perhaps(found[1], known)}."


def _examples(out: Formatter, text: str | None) -> None:
    if text:
        with out.section("Examples"):
            out.write("".join(f"  {line}\n" for line in text.splitlines()))


def _argument(parameter: Any) -> str:
    """`BUNDLE`, `[OTHER]...`: brackets for what may be left out, points for what may come again."""
    name = str(parameter.metavar or parameter.name)
    core = name.replace("[", "").replace("]", "").removesuffix("...")
    several = "..." if parameter.nargs == -1 else ""
    return f"{core}{several}" if parameter.required else f"[{core}]{several}"


def _name(option: Any) -> str:
    return str(next(name for name in option.opts if name.startswith("--"))).removeprefix("--")


def _record(option: Any, ctx: Any) -> tuple[tuple[str, str], list[str]]:
    """How an option is written and what it says; then its spellings in trtexec."""
    written, said = option.get_help_record(ctx)
    said = re.sub(r"default: \((.*?)\)(?=[\];])", r"default: \1", said)
    said = re.sub(r"(?<=[ =]\d)\.0(?=[;\]])", "", said)
    for kind, letter in _LETTERS.items():
        written = written.replace(kind, letter)
    return (_ALIAS.sub("", written), said), _ALIAS.findall(written)
