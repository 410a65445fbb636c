"""Who made a bundle: an Ed25519 signature (RFC 8032) over its manifest, with all hashes.

`signature.json` lies beside the manifest.  What is signed is a line that says what it is for and
the SHA-256 of the manifest's bytes, so that a signature of anything else, or of another bundle,
does not hold.  A bundle whose signature is required holds the files that its manifest lists,
unchanged, and no others, but for the report, which nothing that runs a bundle reads.

Keys are what OpenSSL and OpenSSH write: PEM, or a line that begins with ``ssh-ed25519``.
"""

import base64
import binascii
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intaglio.errors import BundleError, MissingExtraError, OptionError
from intaglio.runtime.plain_files import parse_json, read_text

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

FILE_NAME = "signature.json"
ALGORITHM = "ed25519"
PURPOSE = b"intaglio bundle, version 1\n"
LARGEST = 64 << 10  # bytes of a key or a signature
AGAIN = "Have the bundle signed again."
MAKE = "Make a pair with: ssh-keygen -t ed25519 -N '' -f maker"

PathLike = str | os.PathLike[str]


def sign(manifest: bytes, key: PathLike) -> tuple[bytes, str]:
    """What `signature.json` shall hold, and the fingerprint of the key.

    Args:
        manifest: the bytes of `manifest.json`.
        key: file of a private Ed25519 key.

    Raises:
        OptionError: if the key cannot be read, or is no private Ed25519 key.
        MissingExtraError: if the extra ``sign`` is not installed.
    """
    private = _private_key(key)
    name = _fingerprint(private.public_key())
    signature = base64.b64encode(private.sign(_message(manifest))).decode()
    content = {"algorithm": ALGORITHM, "key": name, "signature": signature}
    return json.dumps(content, indent=1).encode() + b"\n", name


def require(manifest: bytes, signature: Path, key: PathLike) -> str:
    """The fingerprint of `key`, once the file `signature` is its signature of a manifest.

    Raises:
        BundleError: if there is no signature, or it is of another manifest or by another key.
        OptionError: if the key cannot be read, or is no public Ed25519 key.
        MissingExtraError: if the extra ``sign`` is not installed.
    """
    public = _public_key(key)
    name, root = _fingerprint(public), signature.parent
    if not os.path.lexists(signature):
        raise BundleError(
            f"{root} is not signed: it has no {FILE_NAME}. Ask its maker for a signed one, or sign "
            f"what you trust: intaglio sign {root} --key PRIVATE_KEY."
        )
    entry = _read(signature)
    from cryptography.exceptions import InvalidSignature

    try:
        public.verify(base64.b64decode(entry["signature"], validate=True), _message(manifest))
    except (InvalidSignature, binascii.Error, ValueError) as error:
        if entry["key"] != name:
            raise BundleError(
                f"{root} is signed by {entry['key']}, not by the key {name} of {key}."
            ) from error
        raise BundleError(
            f"{root} does not hold what was signed: its manifest was changed after that, or the "
            "signature is of another bundle. Copy the bundle again from where it is whole, or have "
            "it signed again."
        ) from error
    return name


def claimed_signer(root: Path) -> str | None:
    """The key that `signature.json` names, which nothing has checked; None where there is none.

    Raises:
        BundleError: if the file cannot be read.
    """
    path = root / FILE_NAME
    return str(_read(path)["key"]) if os.path.lexists(path) else None


def _message(manifest: bytes) -> bytes:
    return PURPOSE + hashlib.sha256(manifest).hexdigest().encode()


def _read(path: Path) -> Mapping[str, str]:
    try:
        entry = parse_json(read_text(path, LARGEST))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read: {error}. {AGAIN}") from error
    keys = ("algorithm", "key", "signature")
    if not isinstance(entry, dict) or not all(isinstance(entry.get(k), str) for k in keys):
        raise BundleError(f"{path} is no signature of a bundle. {AGAIN}")
    if entry["algorithm"] != ALGORITHM:
        raise BundleError(f"{path} is of the algorithm {entry['algorithm']!r}, not {ALGORITHM!r}.")
    return entry


def _fingerprint(key: "Ed25519PublicKey") -> str:
    """As ``ssh-keygen -lf KEY.pub`` tells it."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    line = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    digest = hashlib.sha256(base64.b64decode(line.split()[1])).digest()
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


def _private_key(path: PathLike) -> "Ed25519PrivateKey":
    content = _key_text(path)
    from cryptography.hazmat.primitives import serialization as forms
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if b"PUBLIC KEY" in content or content.startswith(b"ssh-"):
        raise OptionError(
            f"{path} is a public key: a bundle is signed with the private one. {MAKE}"
        )
    openssh = b"BEGIN OPENSSH PRIVATE KEY" in content
    reader = forms.load_ssh_private_key if openssh else forms.load_pem_private_key
    key = _loaded(lambda: reader(content, None), path, "private")
    if not isinstance(key, Ed25519PrivateKey):
        raise OptionError(f"{path} is a key of another kind than Ed25519. {MAKE}")
    return key


def _public_key(path: PathLike) -> "Ed25519PublicKey":
    content = _key_text(path)
    from cryptography.hazmat.primitives import serialization as forms
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if b"PRIVATE KEY" in content:
        raise OptionError(
            f"{path} is a private key: a signature is required by the public one, which ssh-keygen "
            "writes beside it as .pub."
        )
    openssh = content.startswith((b"ssh-", b"ecdsa-", b"sk-"))
    reader = forms.load_ssh_public_key if openssh else forms.load_pem_public_key
    key = _loaded(lambda: reader(content), path, "public")
    if not isinstance(key, Ed25519PublicKey):
        raise OptionError(f"{path} is a key of another kind than Ed25519. {MAKE}")
    return key


def _key_text(path: PathLike) -> bytes:
    """The content of a file of a key, once what reads it is known to be installed."""
    try:
        import cryptography  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError("A signature of a bundle", "sign") from error
    try:
        return read_text(path, LARGEST).strip().encode()
    except OSError as error:
        raise OptionError(f"The key {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise OptionError(f"{path} is no key in PEM or of OpenSSH. {MAKE}") from error


def _loaded(read: Callable[[], Any], path: PathLike, kind: str) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        return read()
    except TypeError as error:  # it has a passphrase
        raise OptionError(
            f"{path} has a passphrase, which nothing here asks for. Give a copy without one: "
            f"ssh-keygen -p -N '' -f COPY"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise OptionError(f"{path} is no {kind} key in PEM or of OpenSSH. {MAKE}") from error
