"""known_hosts is read as OpenSSH reads it."""

from __future__ import annotations

import base64
import hashlib
import hmac
from pathlib import Path

import pytest

from transport.errors import TransportFault
from transport.known_hosts import KnownKeys, fingerprint, known_keys, lookup_name

KEY = base64.b64encode(b"\0\0\0\x0bssh-ed25519" + b"\0\0\0\x20" + bytes(32)).decode()
OTHER = base64.b64encode(b"\0\0\0\x07ssh-rsa" + bytes(40)).decode()


def look(tmp_path: Path, text: str, name: str) -> KnownKeys:
    path = tmp_path / "known_hosts"
    path.write_text(text)
    return known_keys(name, [str(path), str(tmp_path / "missing")])


def hashed(name: str) -> str:
    salt = b"0123456789abcdefghij"
    digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


@pytest.mark.parametrize(
    ("names", "name", "found"),
    [
        ("web", "web", True),
        ("web", "webs", False),
        ("Web.Example", "web.example", True),
        ("a,web,b", "web", True),
        ("*.example.com", "x.example.com", True),
        ("*.example.com", "example.com", False),
        ("w?b", "web", True),
        ("*.example.com,!bad.example.com", "bad.example.com", False),
        ("!bad.example.com,*.example.com", "bad.example.com", False),
        ("!bad.example.com", "good.example.com", False),
        ("[web]:2222", "[web]:2222", True),
        ("[web]:2222", "web", False),
        ("web", "[web]:2222", False),
        ("[web]:*", "[web]:2222", True),
        ("[w]eb", "web", False),
        (hashed("web"), "web", True),
        (hashed("web"), "wex", False),
        (hashed("[web]:2222"), "[web]:2222", True),
        ("|1|broken", "web", False),
        ("|1|%%%|%%%", "web", False),
    ],
)
def test_names_match_as_in_openssh(tmp_path: Path, names: str, name: str, found: bool) -> None:
    keys = look(tmp_path, f"{names} ssh-ed25519 {KEY} comment here\n", name)
    assert [key.kind for key in keys.trusted] == (["ssh-ed25519"] if found else [])


def test_revoked_keys_and_authorities_are_not_trusted(tmp_path: Path) -> None:
    keys = look(
        tmp_path,
        f"# comment\n\nweb ssh-ed25519 {KEY}\nweb ssh-rsa {OTHER}\n"
        f"@revoked * ssh-rsa {OTHER}\n@cert-authority *.example ssh-rsa {OTHER}\n"
        f"@cert-authority web ssh-ed25519 {KEY}\n@strange web ssh-rsa {OTHER}\n",
        "web",
    )
    assert keys.trusts(base64.b64decode(KEY))
    assert not keys.trusts(base64.b64decode(OTHER))
    assert keys.revokes(base64.b64decode(OTHER))
    assert keys.authorities
    assert keys.trusted[0].place.endswith("known_hosts:3")


def test_lines_that_are_no_keys_are_passed_over(tmp_path: Path) -> None:
    keys = look(tmp_path, f"web ssh-rsa !!!\nweb\nweb ssh-rsa\nweb ssh-rsa {OTHER}\n\xff\n", "web")
    assert keys.kinds == ("ssh-rsa",)


def test_a_file_that_cannot_be_read_is_an_error_not_an_empty_file(tmp_path: Path) -> None:
    with pytest.raises(TransportFault):
        known_keys("web", [str(tmp_path)])


def test_names_carry_the_port_unless_it_is_the_usual_one() -> None:
    assert lookup_name("Web", 22) == "web"
    assert lookup_name("Web", 2222) == "[web]:2222"


def test_fingerprints_look_as_openssh_shows_them() -> None:
    assert fingerprint(b"") == "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU"
