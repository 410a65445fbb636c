"""Commands and Python blocks in children of a process that has the libraries imported.

Importing PyTorch and its exporter takes longer than most of what the documents do with them, and
so do the tables that its first conversion makes.  A server does both once and forks for each
command; the folder of `warm` holds an `intaglio` that asks it.
"""

import contextlib
import gc
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as link:
    link.connect({address!r})
    said = json.dumps([sys.argv, os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(link, [len(said).to_bytes(4, "big")], [0, 1, 2])
    link.sendall(said)
    os._exit(int.from_bytes(link.recv(4), "big"))
"""


@contextlib.contextmanager
def warm(folder: Path, traces: Path) -> Iterator[Path]:
    """A folder for PATH with `intaglio`, and beside it `block`, which runs ``block -c TEXT``.

    Systems are traced once, see `traced_once`.  The server ends with the context.
    """
    address, place = str(folder / "socket"), folder / "bin"
    place.mkdir()
    for client in (place / "intaglio", folder / "block"):
        client.write_text(CLIENT.format(python=sys.executable, address=address))
        client.chmod(0o755)
    server = subprocess.Popen([sys.executable, __file__, address, traces])
    try:
        while not Path(address).exists():
            assert server.poll() is None, "the server ended"
            time.sleep(0.05)
        yield place
    finally:
        server.kill()
        server.wait()


def serve(address: str, traces: Path) -> None:
    """Fork for each command that comes in."""
    import onnxruntime  # noqa: F401
    import transformers  # noqa: F401
    from traced_once import traced_once

    import intaglio.cli
    import intaglio.exporter.export
    import intaglio.exporter.sources.load  # noqa: F401

    _convert_once()
    gc.freeze()  # no child walks, and so copies, what all of them share
    with traced_once(traces):
        _listen(address)


def _convert_once() -> None:
    """Fill PyTorch's tables; on one thread, since a pool of threads does not outlive a fork."""
    import torch

    from intaglio.exporter.tracing.translations import swift_translations
    from intaglio.quiet import quiet

    torch.set_num_threads(1)
    rows = {0: torch.export.Dim.DYNAMIC}
    with quiet(), swift_translations():
        program = torch.export.export(
            torch.nn.Linear(2, 2), (torch.zeros(3, 2),), dynamic_shapes=(rows,), strict=False
        )
        torch.onnx.export(program, dynamo=True, opset_version=23, optimize=False, verbose=False)


def _listen(address: str) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address + ".new")
    listener.listen()
    Path(address + ".new").rename(address)
    while True:
        link, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            runner = os.fork()
            if runner == 0:
                _run(link)
            _, status = os.waitpid(runner, 0)
            code = os.waitstatus_to_exitcode(status)
            link.sendall((code if code >= 0 else 128 - code).to_bytes(4, "big"))
            os._exit(0)
        link.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _run(link: socket.socket) -> None:
    """Be the command: its streams, folder, environment and arguments; never returns."""
    head, streams, _, _ = socket.recv_fds(link, 4, 3)
    size, said = int.from_bytes(head, "big"), b""
    while len(said) < size:
        said += link.recv(size - len(said))
    argv, folder, environment = json.loads(said)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    sys.stdin = os.fdopen(0, encoding="utf-8")
    sys.stdout = os.fdopen(1, "w", encoding="utf-8")
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", buffering=1)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    code: Any = 0
    try:
        sys.argv = argv
        if Path(argv[0]).name == "intaglio":
            from intaglio.cli import main

            main()
        else:
            sys.argv = ["-c", *argv[3:]]
            sys.path.insert(0, "")
            exec(compile(argv[2], "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as ended:
        code = ended.code
    except BaseException:  # noqa: BLE001  as the interpreter does
        sys.excepthook(*sys.exc_info())
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]))
