"""Signatures of bundles: what they bind, and every way in which they fail closed."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization as forms
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from killed import after_calls

from intaglio.errors import BundleError, MissingExtraError, OptionError
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.manifest import FILE_NAME, FileRecord
from intaglio.runtime.session import Session
from intaglio.runtime.signing import FILE_NAME as SIGNATURE
from intaglio.runtime.signing import claimed_signer

MakeBundle = Callable[..., Path]


def write_pair(path: Path, key: Ed25519PrivateKey | X25519PrivateKey, form: str) -> None:
    """A private key at `path`, the public one beside it as .pub."""
    openssh = form == "OpenSSH"
    private = forms.PrivateFormat.OpenSSH if openssh else forms.PrivateFormat.PKCS8
    public = forms.PublicFormat.OpenSSH if openssh else forms.PublicFormat.SubjectPublicKeyInfo
    outer = forms.Encoding.OpenSSH if openssh else forms.Encoding.PEM
    path.write_bytes(key.private_bytes(forms.Encoding.PEM, private, forms.NoEncryption()))
    path.with_suffix(".pub").write_bytes(key.public_key().public_bytes(outer, public))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    for name in ("maker", "other"):
        write_pair(folder / name, Ed25519PrivateKey.generate(), "OpenSSH")
    write_pair(folder / "exchange", X25519PrivateKey.generate(), "PEM")
    return folder


@pytest.fixture
def signed(make_bundle: MakeBundle, keys: Path) -> Path:
    """A bundle that `maker` signed."""
    path = make_bundle()
    Bundle.open(path).sign(keys / "maker")
    return path


@pytest.mark.parametrize("form", ["OpenSSH", "PEM"])
def test_what_a_key_signed_opens_with_its_public_key(
    make_bundle: MakeBundle, tmp_path: Path, form: str
) -> None:
    write_pair(tmp_path / "key", Ed25519PrivateKey.generate(), form)
    path = make_bundle()
    name = Bundle.open(path).sign(tmp_path / "key")

    assert Bundle.open(path, require_signature=tmp_path / "key.pub").signer == name
    assert name == claimed_signer(path)
    assert name.startswith("SHA256:")
    Session.load(path, require_signature=tmp_path / "key.pub")
    assert Bundle.open(path).signer is None, "nobody asked, nothing was checked"


def test_a_bundle_that_was_opened_without_is_checked_when_a_session_asks(
    signed: Path, keys: Path
) -> None:
    opened = Bundle.open(signed)
    (signed / SIGNATURE).unlink()
    with pytest.raises(BundleError, match="is not signed"):
        Session.load(opened, require_signature=keys / "maker.pub")


def test_the_report_is_not_bound(signed: Path, keys: Path) -> None:
    """Measuring a bundle does not make it another one."""
    (signed / "report.json").write_text("{}")

    assert Bundle.open(signed, require_signature=keys / "maker.pub").signer


def change_weights(path: Path) -> None:
    data = path / "ort/model.onnx"
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)


def change_weights_and_manifest(path: Path) -> None:
    change_weights(path)
    manifest = json.loads((path / FILE_NAME).read_text())
    manifest["files"]["ort/model.onnx"] = vars(FileRecord.of(path / "ort/model.onnx"))
    (path / FILE_NAME).write_text(json.dumps(manifest))


def add_a_listed_file(path: Path) -> None:
    (path / "more.so").write_bytes(b"\x7fELF")
    manifest = json.loads((path / FILE_NAME).read_text())
    manifest["files"]["more.so"] = vars(FileRecord.of(path / "more.so"))
    (path / FILE_NAME).write_text(json.dumps(manifest))


def add_deeper(path: Path) -> None:
    (path / "ort/x").mkdir(parents=True)
    (path / "ort/x/y").write_bytes(b"")


def link_a_device(path: Path) -> None:
    (path / SIGNATURE).unlink()
    (path / SIGNATURE).symlink_to("/dev/zero")


def write_signature(path: Path, **changes: object) -> None:
    entry = json.loads((path / SIGNATURE).read_text())
    (path / SIGNATURE).write_text(json.dumps({**entry, **changes}))


ATTACKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no signature": (lambda path: (path / SIGNATURE).unlink(), "is not signed"),
    "weights": (change_weights, "was changed after export"),
    "weights and manifest": (change_weights_and_manifest, "does not hold what was signed"),
    "one space in the manifest": (
        lambda path: (path / FILE_NAME).write_bytes((path / FILE_NAME).read_bytes() + b" "),
        "does not hold what was signed",
    ),
    "a file more": (lambda path: (path / "more.so").write_bytes(b""), "does not list"),
    "a file more, deeper": (add_deeper, "does not list"),
    "a pipe more": (lambda path: os.mkfifo(path / "pipe"), "does not list"),
    "a link to a folder more": (lambda path: (path / "link").symlink_to("."), "does not list"),
    "a file more, listed": (add_a_listed_file, "does not hold what was signed"),
    "a file less": (lambda path: (path / "ort/model.onnx").unlink(), "lacks the file"),
    "a signature of no bytes": (lambda path: write_signature(path, signature=""), "not hold"),
    "a signature of other bytes": (
        lambda path: write_signature(path, signature="A" * 86 + "=="),
        "does not hold what was signed",
    ),
    "a signature in no base64": (lambda path: write_signature(path, signature="é"), "not hold"),
    "another algorithm": (lambda path: write_signature(path, algorithm="none"), "algorithm"),
    "a signature that is a number": (lambda path: write_signature(path, signature=1), "signature"),
    "a signature that is no JSON": (
        lambda path: (path / SIGNATURE).write_bytes(b"\xff"),
        "cannot be read",
    ),
    "a signature that is a device": (link_a_device, "leaves the bundle"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_was_not_signed_is_refused(signed: Path, keys: Path, attack: str) -> None:
    change, words = ATTACKS[attack]
    change(signed)

    with pytest.raises(BundleError, match=words):
        Bundle.open(signed, require_signature=keys / "maker.pub")


def test_another_key_is_refused_by_name(signed: Path, keys: Path) -> None:
    with pytest.raises(BundleError, match=r"is signed by SHA256:.*, not by the key SHA256:"):
        Bundle.open(signed, require_signature=keys / "other.pub")


def test_a_key_that_is_only_named_is_refused(signed: Path, keys: Path) -> None:
    """Whose key it is says the key that is given, not the file."""
    other = Bundle.open(signed).sign(keys / "other")
    Bundle.open(signed).sign(keys / "maker")
    write_signature(signed, key=other)

    with pytest.raises(BundleError, match="does not hold what was signed"):
        Bundle.open(signed, require_signature=keys / "other.pub")


def test_a_signature_of_another_bundle_is_refused(
    signed: Path, make_bundle: MakeBundle, keys: Path
) -> None:
    """The same maker, another bundle: also where the whole pair of files is exchanged."""
    another = make_bundle(seed=1)
    shutil.copy(signed / SIGNATURE, another / SIGNATURE)
    with pytest.raises(BundleError, match="does not hold what was signed"):
        Bundle.open(another, require_signature=keys / "maker.pub")

    shutil.copy(signed / FILE_NAME, another / FILE_NAME)
    with pytest.raises(BundleError, match=r"was changed after export|bytes, the manifest says"):
        Bundle.open(another, require_signature=keys / "maker.pub")


def test_only_what_is_whole_is_signed(signed: Path, keys: Path) -> None:
    (signed / "notes.txt").write_text("x")
    with pytest.raises(BundleError, match="does not list"):
        Bundle.open(signed).sign(keys / "maker")

    (signed / "notes.txt").unlink()
    change_weights(signed)
    with pytest.raises(BundleError, match="was changed after export"):
        Bundle.open(signed).sign(keys / "maker")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("maker.pub", "is a public key"),
        ("exchange", "another kind than Ed25519"),
        ("absent", "cannot be read"),
        (".", "is a directory"),
        ("noise", "no private key"),
        ("bytes", "no key in PEM"),
        ("locked", "has a passphrase"),
    ],
)
def test_a_key_that_cannot_sign_is_refused(
    make_bundle: MakeBundle, keys: Path, name: str, words: str
) -> None:
    (keys / "noise").write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    (keys / "bytes").write_bytes(b"\xff\xfe")
    locked = forms.BestAvailableEncryption(b"x")
    (keys / "locked").write_bytes(
        Ed25519PrivateKey.generate().private_bytes(
            forms.Encoding.PEM, forms.PrivateFormat.PKCS8, locked
        )
    )
    with pytest.raises(OptionError, match=words):
        Bundle.open(make_bundle()).sign(keys / name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("maker", "is a private key"),
        ("exchange.pub", "another kind than Ed25519"),
        ("noise.pub", "no public key"),
    ],
)
def test_a_key_that_proves_nothing_is_refused(
    signed: Path, keys: Path, name: str, words: str
) -> None:
    (keys / "noise.pub").write_text("ssh-ed25519 AAAA")
    with pytest.raises(OptionError, match=words):
        Bundle.open(signed, require_signature=keys / name)


def test_what_checks_signatures_is_an_extra(
    signed: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cryptography", None)
    with pytest.raises(MissingExtraError, match=r"intaglio\[sign\]"):
        Bundle.open(signed, require_signature=keys / "maker.pub")


def test_a_signer_that_is_killed_leaves_a_bundle_that_opens(signed: Path, keys: Path) -> None:
    """After any call, with the draft that it left, which nothing reads; the next one clears it."""

    def sign() -> None:
        Bundle.open(signed).sign(keys / "maker")

    for _ in after_calls(sign, sign, step=25):
        assert Bundle.open(signed, require_signature=keys / "maker.pub").signer

    (signed / f".{SIGNATURE}.0.draft").write_text("")
    assert Bundle.open(signed, require_signature=keys / "maker.pub").signer
    sign()
    assert not [*signed.glob(".*")]
    (signed / f".{SIGNATURE}.0.draft").symlink_to("/etc/passwd")
    with pytest.raises(BundleError, match="does not list"):
        Bundle.open(signed, require_signature=keys / "maker.pub")
