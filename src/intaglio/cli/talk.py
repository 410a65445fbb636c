"""Continue a text, or answer each message of a chat, and print what comes as it comes."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from intaglio.runtime.consumed import Consumed
from intaglio.runtime.session import Session
from intaglio.runtime.speculative import Draft

from .chat import Texts
from .codecs import Codec
from .console import Console
from .stream import continue_text


def talk(
    console: Console,
    session: Session,
    texts: Texts,
    words: Codec,
    prompt: str | None,
    *,
    chat: bool,
    system: str | None,
    echo: bool,
    jsonl: bool,
    stop: Sequence[str],
    draft: Draft | None,
    **how: Any,
) -> None:
    """Continue `prompt`, or answer it by the chat template; without one, each line of stdin.

    Args:
        console: where the text goes, and what `--json` prints.
        session: of the model.
        texts: its tokenizer and chat template, or the user's.
        words: the codec of `texts` for the model.
        prompt: what to continue; None, of a chat alone, for lines of stdin.
        chat: whether `texts` puts messages into a conversation.
        system: what a conversation begins with.
        echo: print what was asked before what continues it.
        jsonl: print an object for each token instead of text.
        stop: texts that end what is generated.
        draft: a small model that proposes tokens.
        **how: to choose tokens, as `continue_text` takes it.

    Raises:
        InputError: if there is no chat template, or the text does not fit.
    """
    messages = [] if system is None else [{"role": "system", "content": system}]
    if chat and prompt is None:
        texts.conversation([*messages, {"role": "user", "content": ""}], words)  # refused at once
    held = Consumed(session) if chat and draft is None else None
    for asked in [prompt] if prompt is not None else iter(_asked, None):
        messages = [*messages, {"role": "user", "content": asked}]
        ids = texts.conversation(messages, words) if chat else words.encode(asked)
        if echo:
            console.stream(asked)
        if chat and draft is not None:
            session.state.reset()
            draft.session.state.reset()
        try:
            made, text, latency = continue_text(
                session,
                ids,
                stop,
                lambda text, token: _tell(console, text, token, jsonl=jsonl),
                words,
                held,
                draft=draft,
                **how,
            )
        finally:
            console.stream("\n")
        messages = [*messages, {"role": "assistant", "content": text}]
        told = {} if draft is None else {"draft": draft.to_json()}
        console.result({"tokens": made, "text": text, "latency": latency.to_json(), **told})
        console.message(str(latency))
        if draft is not None:
            console.message(str(draft))


def _asked() -> str | None:
    """What the user says next, None at the end of stdin."""
    if sys.stdin.isatty():
        sys.stderr.write("> ")
        sys.stderr.flush()
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None


def _tell(console: Console, text: str, token: int | None, *, jsonl: bool) -> None:
    """Print what a token adds to the text: a piece of it, or a line of JSON."""
    if jsonl:
        console.write(json.dumps({"token": token, "text": text}) + "\n")
    else:
        console.stream(text)
