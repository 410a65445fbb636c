"""`intaglio run`: continue a text, or step through arrays."""

from functools import cache
from pathlib import Path
from typing import Annotated

import typer

from intaglio.cli.console import Console, Flags
from intaglio.cli.frame import command
from intaglio.errors import ConvergenceError, InputError
from intaglio.places import require_file

from .options import BundlePath, Signature, open_bundle, require_consent

TOKENS = 100  # generated unless --steps says otherwise


@command
def run_(
    console: Console,
    bundle: BundlePath,
    prompt: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Text to continue; ids without a tokenizer."),
    ] = None,
    inputs: Annotated[
        Path | None, typer.Option(metavar="FILE.npz", help="Arrays to step through instead.")
    ] = None,
    condition: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE.npz|VALUE", help="What holds for the whole sequence; repeatable."
        ),
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE.npz", help="An adapter to switch to; else the base."),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(metavar="FILE|DIR", help="A tokenizer.json to use, or the folder of one."),
    ] = None,
    chat: Annotated[
        bool,
        typer.Option("--chat", help="Talk by the chat template: one --prompt, or lines of stdin."),
    ] = False,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What a chat begins with.")
    ] = None,
    echo: Annotated[
        bool, typer.Option("--echo", help="Print the prompt before what continues it.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="Keep the outputs: .npz, or .png of a picture."
        ),
    ] = None,
    require_convergence: Annotated[
        bool,
        typer.Option(
            "--require-convergence", help="Exit 3 if a loop ends above its tolerance, as a solver."
        ),
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="At most.", show_default="100 tokens, or all arrays"),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            help="0 takes the likeliest token.",
            show_default="0; 1 with the next three, and of a picture",
        ),
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw from so many tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from this share.")] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Draw from tokens at least so likely, to the likeliest.")
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Above 1, tokens that came before are less likely.")
    ] = None,
    guidance: Annotated[
        float, typer.Option(min=0.0, help="Strength of the conditions of a whole.")
    ] = 0.0,
    seed: Annotated[int | None, typer.Option(min=0, help="Draw the same again.")] = None,
    target: Annotated[
        str, typer.Option(metavar="NAME", help="What runs: ort, trt on a GPU, or auto.")
    ] = "auto",
    graph: Annotated[
        str, typer.Option(metavar="NAME", help="Which graph of the bundle to step.")
    ] = "main",
    allow_code: Annotated[
        bool,
        typer.Option("--allow-code", help="Run engine and kernels, code of the bundle's maker."),
    ] = False,
    require_signature: Signature = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End after this text; repeatable.")
    ] = None,
    tables: Annotated[
        bool, typer.Option("--tables", help="Look products of 2 bits up: faster, more memory.")
    ] = False,
    draft: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE", help="A small model that proposes tokens to this one."),
    ] = None,
    draft_tokens: Annotated[
        int, typer.Option(min=1, max=64, metavar="N", help="How many it proposes at once.")
    ] = 4,
    jsonl: Annotated[
        bool, typer.Option("--jsonl", help="Print a JSON object a token as it comes, one at last.")
    ] = False,
) -> None:
    """Run a bundle: continue a text, step through arrays, or generate a picture.

    Examples:
        intaglio run bundle --prompt "def main(" --temperature 0.7 --seed 1
        intaglio run bundle --inputs arrays.npz -o outputs.npz
        intaglio run bundle --condition label=3 -o picture.png
    """
    if prompt is not None and inputs is not None:
        raise typer.BadParameter("give --prompt or --inputs")
    if out is not None and prompt is not None:
        raise typer.BadParameter("--out keeps the outputs of --inputs, or a picture")
    if require_convergence and inputs is None:
        raise typer.BadParameter("--require-convergence is for --inputs")
    if system is not None and not chat:
        raise typer.BadParameter("--system is for --chat")
    if chat and (inputs is not None or out is not None):
        raise typer.BadParameter("--chat takes a --prompt, or lines of stdin")
    if out is not None:
        require_file(out)
    of_tokens = {"jsonl": jsonl, "draft": draft, "repetition-penalty": repetition_penalty}
    stray = next((name for name, value in of_tokens.items() if value not in (None, False)), None)
    if prompt is None and not chat and stray is not None:
        raise typer.BadParameter(f"--{stray} is for the tokens of --prompt")
    if jsonl:
        console.flags |= Flags(json=True)  # for errors, too
    from intaglio.cli import stream
    from intaglio.cli.chat import Texts
    from intaglio.cli.condition_values import read_conditions
    from intaglio.cli.talk import talk
    from intaglio.cli.wholes import generate_whole
    from intaglio.runtime import Bundle, Draft, Session
    from intaglio.runtime.adapters import chosen, is_of_adapter
    from intaglio.runtime.arrays import read_npz
    from intaglio.runtime.convergence import unconverged
    from intaglio.runtime.graph_entry import MAIN

    given = cache(lambda: {} if inputs is None else read_npz(inputs))  # once a bundle is open

    def load(found: Bundle, graph: str, adapter: str | None) -> Session:
        """A session under the conditions that were given."""
        session = Session.load(found, target, graph=graph, tables=tables and found is opened)
        adapted = chosen(session.graph, adapter, stream.rows_of(session.entry, given()))
        if session.entry.conditions or (condition and found is opened):
            others = [spec for spec in session.entry.conditions if not is_of_adapter(spec)]
            session.condition({**adapted, **read_conditions(condition or [], others)})
        return session

    opened = open_bundle(bundle, require_signature)
    require_consent(opened, graph, target, allowed=allow_code)
    if prompt is None and inputs is None and not chat:
        generate_whole(
            console,
            opened,
            target,
            condition or [],
            out,
            guidance=guidance,
            temperature=1.0 if temperature is None else temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seed=seed,
        )
        return
    session = load(opened, graph, adapter)
    if inputs is not None:
        outputs, latency = stream.step_arrays(session, given(), steps)
        if out is not None:
            stream.write_arrays(out, outputs)
        said = unconverged(session.entry.outputs, outputs)
        if said is not None and require_convergence:
            raise ConvergenceError(said, outputs)
        shapes = {name: list(array.shape) for name, array in outputs.items()}
        console.table([[name, str(shape)] for name, shape in shapes.items()], ["output", "shape"])
        console.result({"outputs": shapes, "latency": latency.to_json(), "unconverged": said})
        console.message(str(latency))
        if said is not None:
            console.message(said)
        return
    if condition and (session.state.batch or 1) > 1:
        raise InputError(
            f"--condition gives {session.state.batch} rows, and a text is one. Give one row, or "
            "use intaglio.runtime.generate_rows."
        )
    texts = Texts.of(session) if tokenizer is None else Texts.at(tokenizer)
    words = texts.codec(session.entry)
    small = None
    if draft is not None:
        drafting = open_bundle(draft, require_signature)
        require_consent(drafting, MAIN, target, allowed=allow_code)
        small = Draft(load(drafting, MAIN, None), draft_tokens)
    talk(
        console,
        session,
        texts,
        words,
        prompt,
        chat=chat,
        system=system,
        echo=echo,
        jsonl=jsonl,
        stop=stop or [],
        draft=small,
        max_new_tokens=steps or TOKENS,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
