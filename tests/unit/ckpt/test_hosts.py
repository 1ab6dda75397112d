"""Names of other hosts: what they mean, whose keys are believed, what is left when one is removed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ckpt.ops import hosts as module
from ckpt.ops.elsewhere import cargo, far
from ckpt.ops.elsewhere.setup import Machine, plan
from ckpt.ops.host import Host
from ckpt.ops.hosts import Named, Registry, accepts
from runtime.criu.binary import Criu
from runtime.errors import BadInput, Conflict, NotFound, SystemFault
from runtime.paths import HostPaths
from transport.errors import HostKeyChanged, ProtocolFault, UnknownHost
from transport.ssh_reach import OfferedKey
from transport.ssh_settings import ConfigFiles, SshConfig
from transport.target import BadTarget, parse_target

KEY = OfferedKey("[10.0.0.2]:2222", "ssh-ed25519", b"\0\0\0\x0bssh-ed25519key", False)
TARGET = "root@10.0.0.2:2222"


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A registry whose every host shows KEY."""
    made = Registry(Host(HostPaths(tmp_path / "root", tmp_path / "run")))

    def shown(target: str, *, files: ConfigFiles) -> OfferedKey:
        known = made.keys_file.exists() and KEY.name in made.keys_file.read_text()
        return OfferedKey(KEY.name, KEY.kind, KEY.blob, known)

    monkeypatch.setattr(module, "offered_key", shown)
    monkeypatch.delenv("CKPT_REMOTE", raising=False)
    return made


def test_a_key_is_believed_by_its_fingerprint_and_then_belongs_to_the_name(registry):
    registry.add("b", TARGET, accepts(KEY.fingerprint))
    (named,) = registry.all()
    assert (named.name, named.target) == ("b", TARGET)
    assert registry.fingerprints(named) == [f"ssh-ed25519 {KEY.fingerprint}"]
    assert registry.keys_file.stat().st_mode & 0o777 == 0o600


def test_another_fingerprint_or_nobodys_word_changes_nothing(registry):
    with pytest.raises(HostKeyChanged, match="not SHA256:other"):
        registry.add("b", TARGET, accepts("SHA256:other"))
    with pytest.raises(UnknownHost, match=re.escape(f"--accept {KEY.fingerprint}")):
        registry.add("b", TARGET, lambda key: False)
    assert registry.all() == []
    assert not registry.keys_file.exists()


def test_adding_again_is_no_error_but_a_name_never_changes_its_meaning(registry):
    registry.add("b", TARGET, accepts(KEY.fingerprint))
    registry.set_command("b", "/opt/x/bin/ckpt")
    asked = []
    registry.add("b", TARGET, lambda key: bool(asked.append(key)))
    assert asked == []
    assert registry.get("b").command == "/opt/x/bin/ckpt"
    with pytest.raises(Conflict, match=TARGET):
        registry.add("b", "root@10.0.0.3", accepts(KEY.fingerprint))


def test_a_key_goes_with_the_last_name_of_its_host(registry):
    registry.add("b", TARGET, accepts(KEY.fingerprint))
    registry.add("two", TARGET, accepts(KEY.fingerprint))
    registry.keys_file.write_text(registry.keys_file.read_text() + "other ssh-ed25519 AAAA\n")
    registry.remove("b")
    assert KEY.name in registry.keys_file.read_text()
    registry.remove("two")
    assert registry.keys_file.read_text() == "other ssh-ed25519 AAAA\n"
    with pytest.raises(NotFound):
        registry.remove("two")


def test_a_name_a_journals_target_and_anything_else_are_understood(registry, monkeypatch):
    registry.add("b", TARGET, accepts(KEY.fingerprint))
    registry.set_command("b", "/opt/x/bin/ckpt")
    for text in ("b", TARGET):
        assert registry.meant(text).name == "b"
        assert registry.command(text) == ["/opt/x/bin/ckpt"]
    assert registry.meant("root@c") == Named("", "root@c", "")
    assert registry.command("root@c") == ["ckpt"]
    monkeypatch.setenv("CKPT_REMOTE", "python -m ckpt")
    assert registry.command("b") == ["python", "-m", "ckpt"]


@pytest.mark.parametrize("name", ["", "-x", "a b", "a/b", "a@b", "a:1", "ä", "x" * 64])
def test_a_name_can_be_told_from_a_target(registry, name):
    with pytest.raises(BadInput):
        registry.add(name, TARGET, lambda key: True)


@pytest.mark.parametrize("target", ["", "-oProxyCommand=x", "a b", "root@", "h:0"])
def test_what_is_no_host_gets_no_name(registry, target):
    with pytest.raises(BadTarget):
        registry.add("b", target, lambda key: True)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[1]",
        b'{"format": 2, "hosts": []}',
        b'{"format": 1, "hosts": [{"name": "b"}]}',
        b'{"format": 1, "hosts": [{"name": "b", "target": "-x", "place": "b"}]}',
        b'{"format": 1, "hosts": [{"name": "b", "target": "c", "place": 1}]}',
    ],
)
def test_a_damaged_file_is_named_and_left_alone(registry, content):
    registry.keys_file.parent.mkdir()
    file = registry.keys_file.with_name("hosts.json")
    file.write_bytes(content)
    with pytest.raises(SystemFault, match=r"hosts\.json"):
        registry.all()
    assert file.read_bytes() == content


def test_accepted_keys_count_for_openssh_and_for_us_and_a_missing_file_for_neither(tmp_path):
    keys = tmp_path / "100%keys"
    for there in (False, True):
        if there:
            keys.write_text("")
        config = SshConfig(ConfigFiles(None, Path("/dev/null"), keys))
        try:
            settings = config.settings(parse_target("somewhere"))
            text = config.path.read_text()
        finally:
            config.close()
        assert str(keys) in settings.known_hosts
        assert ("KnownHostsCommand" in text) is there


# ---- what is sent, and what is done with it


FOUND = {
    "uid": 0,
    "system": "Debian",
    "machine": "x86_64",
    "kernel": "6.12",
    "python": [3, 13],
    "missing": ["gcc"],
    "apt": True,
    "code": "",
    "answers": "",
    "foreign": False,
    "criu": {"path": "/usr/sbin/criu", "version": "4.1"},
}


def test_only_what_differs_is_done():
    criu = Criu("/c", (4, 2, 1))
    wanted = plan(Machine.of(FOUND, "b"), criu)
    assert (wanted.packages, wanted.code, wanted.criu) == (("gcc",), True, True)
    same = {"code": cargo.own_digest(), "answers": "ckpt 0.1.0", "missing": []}
    same["criu"] = {"path": "/c", "version": "4.2.1"}
    assert plan(Machine.of({**FOUND, **same}, "b"), criu).nothing


@pytest.mark.parametrize(
    "wrong",
    [{"python": None}, {"criu": 3}, {"criu": {"version": "a.b"}}, {"uid": "x"}, {"missing": 1}],
)
def test_nonsense_from_there_is_refused(wrong):
    with pytest.raises(ProtocolFault):
        Machine.of({**FOUND, **wrong}, "b")
    assert "\x1b" not in Machine.of({**FOUND, "system": "\x1b[2J"}, "b").system


def test_the_digest_tells_contents_apart_and_not_places_or_caches(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        for name in far.OURS:
            (folder / name).mkdir(parents=True)
            (folder / name / "x.py").write_text(name)
    (second / "ckpt/__pycache__").mkdir()
    (second / "ckpt/__pycache__/x.pyc").write_text("x")
    assert far.digest(first) == far.digest(second) != ""
    (second / "ckpt/x.py").write_text("other")
    assert far.digest(first) != far.digest(second)
    assert far.digest(tmp_path) == ""


def run_far(*words: str, cwd: Path) -> tuple[int, dict]:
    """As it runs over there: text given to a Python that knows nothing of us."""
    code = Path(far.__file__).read_text()
    argv = [sys.executable, "-I", "-S", "-c", code, *words]
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout)


def test_far_needs_nothing_but_python(tmp_path):
    status, found = run_far("look", str(tmp_path), cwd=tmp_path)
    assert status == 0
    assert (found["code"], found["answers"], found["foreign"]) == ("", "", False)
    Machine.of(found, "here")


def test_far_says_why_it_failed_in_its_answer(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ckpt").write_text("somebody else's")
    status, answer = run_far("install", str(tmp_path), cwd=tmp_path)
    assert status == 1
    assert "another installation" in answer["failed"]
    assert (tmp_path / "bin/ckpt").read_text() == "somebody else's"


def test_our_libraries_are_found_without_those_for_tests():
    names = {distribution.metadata["Name"].lower() for distribution in cargo._needed()}
    assert {"paramiko", "cryptography", "msgpack", "click"} <= names
    assert {"cffi"} <= names, "what they need themselves"
    assert not names & {"pytest", "mypy", "ruff", "pip"}
