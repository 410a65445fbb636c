"""`intaglio sign`: tie a bundle to whoever made it."""

from pathlib import Path
from typing import Annotated

import typer

from intaglio.cli.console import Console
from intaglio.cli.frame import command

from .options import BundlePath


@command
def sign_(
    console: Console,
    bundle: BundlePath,
    key: Annotated[
        Path, typer.Option(metavar="KEY", help="File of a private Ed25519 key, of OpenSSH or PEM.")
    ],
) -> None:
    """Sign a bundle: its manifest, and with it the hash of every file.

    Examples:
        intaglio sign bundle --key ~/.ssh/id_ed25519
    """
    from intaglio.runtime import Bundle
    from intaglio.runtime.signing import FILE_NAME

    name = Bundle.open(bundle).sign(key)
    console.text(f"signed   {bundle / FILE_NAME}, by {name}")
    console.result({"key": name, "file": str(bundle / FILE_NAME)})
