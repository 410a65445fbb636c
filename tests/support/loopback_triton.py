"""A Triton server of the wheel `nvidia-pytriton`, started on loopback for a model repository.

The wheel brings the server and its Python backend with a stub for each Python, which neither reads
PYTHONPATH nor knows of virtual environments: what this interpreter can import is linked beside the
backend's own module, which its Python looks in.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

START = 120  # seconds until a server that is not ready is given up


def wheel() -> Path | None:
    """Where the wheel lies, None where it is not installed."""
    spec = find_spec("pytriton")
    places = [] if spec is None else [*(spec.submodule_search_locations or ())]
    return Path(places[0]) if places else None


def backends(folder: Path) -> Path:
    """A folder of backends made in `folder`: the Python backend for this interpreter."""
    source = wheel()
    assert source is not None
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    place = folder / "backends" / "python"
    place.mkdir(parents=True)
    server = source / "tritonserver"
    for file in (server / "backends" / "python").iterdir():
        (place / file.name).symlink_to(file)
    stub = place / "triton_python_backend_stub"
    shutil.copy(server / "python_backend_stubs" / version / stub.name, stub)
    stub.chmod(0o755)
    for entry in (Path(each) for each in sys.path if each):
        if entry.is_dir() and not entry.is_relative_to(sysconfig.get_path("stdlib")):
            _link(entry, place)
    return place.parent


def _link(entry: Path, place: Path) -> None:
    """Link the modules of a folder, but for those of the same name that come before."""
    for found in entry.iterdir():
        link = place / found.name
        if (found.is_dir() or found.suffix in {".py", ".so"}) and not link.exists():
            link.symlink_to(found.resolve())


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


@contextmanager
def serve(repository: Path, folder: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """The address of a server's gRPC port, and its process, which is ended in the end."""
    import tritonclient.grpc as client

    source = wheel()
    assert source is not None
    binary = folder / "tritonserver"
    made = folder / "backends" if (folder / "backends").exists() else backends(folder)
    if not binary.exists():  # its libraries are found from where it lies
        binary.symlink_to(source / "tritonserver" / "bin" / "tritonserver")
    (source / "tritonserver" / "bin" / "tritonserver").chmod(0o755)
    port = free_port()
    libraries = [source.parent / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR")]
    log = (folder / "server.log").open("ab")
    process = subprocess.Popen(
        [
            source / "tritonserver" / "bin" / "tritonserver", "--model-repository", repository,
            "--backend-directory", made, "--allow-http=false", "--allow-metrics=false",
            "--grpc-address=127.0.0.1", f"--grpc-port={port}", "--exit-timeout-secs=5",
        ],
        env={
            **os.environ, "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
            "PYTHONHOME": sys.base_prefix, "OMP_NUM_THREADS": "1",
        },
        stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    address = f"127.0.0.1:{port}"
    try:
        connection: Any = client.InferenceServerClient(address)
        until = time.monotonic() + START
        while not _is_ready(connection):
            said = (folder / "server.log").read_text(errors="replace")[-4000:]
            assert process.poll() is None, said
            assert time.monotonic() < until, said
            time.sleep(0.1)
        connection.close()
        yield address, process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


def _is_ready(connection: Any) -> bool:
    from tritonclient.utils import InferenceServerException

    try:
        return bool(connection.is_server_ready())
    except InferenceServerException:
        return False
