"""Sessions with a real OpenSSH server: whom we trust, how we log in, how we notice the end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import needs
from tests.contract.sshd_lab import Lab, Sshd, keygen, lab
from transport.errors import (
    AuthRefused,
    HostKeyChanged,
    LinkLost,
    RemoteMissing,
    TimedOut,
    TransportFault,
    UnknownHost,
    Unreachable,
)
from transport.framing import FrameLink
from transport.messages import greet
from transport.ssh import Session, connect
from transport.ssh_settings import ConfigFiles
from transport.target import BadTarget

pytestmark = needs.tool("sshd", "ssh", "ssh-keygen")


@pytest.fixture
def host(ckpt_root: Path) -> Iterator[Lab]:
    with lab(ckpt_root / "lab", kinds=("ed25519", "ecdsa")) as made:
        yield made


def answer(session: Session, *argv: str, env: dict[str, str] | None = None) -> tuple[bytes, int]:
    with session.open_command(argv, env) as process:
        process.close_stdin()
        out = b""
        while data := process.receive(65536, 10):
            out += data
        return out, process.wait(10)


def test_a_known_host_with_our_key_runs_commands(host: Lab) -> None:
    with connect("lab", files=host.files) as session:
        assert answer(session, "echo", "one two", "$HOME") == (b"one two $HOME\n", 0)
        assert session.direct_address == "127.0.0.1"


def test_user_and_port_on_the_command_line_are_enough(host: Lab) -> None:
    target = f"{host.user}@127.0.0.1:{host.sshd.port}"
    with connect(target, files=host.files) as session:
        assert answer(session, "true") == (b"", 0)


def test_environment_status_and_signals_arrive(host: Lab) -> None:
    with connect("lab", files=host.files) as session:
        assert answer(session, "sh", "-c", 'echo "$A"; exit 7', env={"A": "x 'y"}) == (
            b"x 'y\n",
            7,
        )
        assert answer(session, "sh", "-c", "kill -9 $$")[1] == 255


def test_messages_travel_over_a_commands_stdio(host: Lab) -> None:
    with connect("lab", files=host.files) as session:
        process = session.open_command(["cat"])
        with FrameLink(process) as link:
            hello = greet("test", ["a"]) | {"big": os.urandom(3_000_000)}
            for _ in range(3):
                link.send(hello)
                assert link.recv(10) == hello
            with pytest.raises(TimedOut):
                link.recv(0.1)


def test_a_command_that_talks_much_on_stderr_does_not_stall(host: Lab) -> None:
    with connect("lab", files=host.files) as session:
        out, status = answer(
            session, "sh", "-c", "head -c 6000000 /dev/zero >&2; echo last >&2; echo done"
        )
        assert (out, status) == (b"done\n", 0)


def test_a_missing_program_is_told_apart_from_a_failing_one(host: Lab) -> None:
    with connect("lab", files=host.files) as session:
        for argv, kind in (
            (["no-such-ckpt", "agent"], RemoteMissing),
            (["sh", "-c", "echo sorry >&2; exit 1"], LinkLost),
        ):
            with session.open_command(argv) as process, pytest.raises(kind) as caught:
                FrameLink(process).recv(10)
        assert "sorry" in str(caught.value)


# ── whom we trust ──


def test_an_unknown_host_is_refused_and_nothing_is_learnt(host: Lab) -> None:
    host.known_hosts.write_text("")
    with pytest.raises(UnknownHost, match="connect once with: ssh"):
        connect("lab", files=host.files)
    assert host.known_hosts.read_text() == ""


def test_strictness_cannot_be_configured_away(host: Lab) -> None:
    host.known_hosts.write_text("")
    host.write_config("StrictHostKeyChecking no")
    with pytest.raises(UnknownHost):
        connect("lab", files=host.files)


def test_a_changed_key_is_refused_by_name_and_place(host: Lab) -> None:
    other = keygen(host.folder / "other")
    line = f"[127.0.0.1]:{host.sshd.port} {Path(f'{other}.pub').read_text()}"
    host.known_hosts.write_text(f"# a comment\n{line}")
    with pytest.raises(HostKeyChanged) as caught:
        connect("lab", files=host.files)
    assert f"{host.known_hosts}:2" in str(caught.value)
    assert "ssh-keygen -R" in caught.value.hint
    assert not caught.value.retry


def test_a_revoked_key_is_refused_even_if_listed(host: Lab) -> None:
    lines = host.sshd.known_hosts_lines()
    revoked = "".join(f"@revoked {line}\n" for line in lines.splitlines())
    host.known_hosts.write_text(lines + revoked)
    with pytest.raises(HostKeyChanged, match="revoked"):
        connect("lab", files=host.files)


def test_the_key_types_that_are_known_are_asked_for(host: Lab) -> None:
    """The server prefers its ed25519 key; only its ecdsa key is known."""
    lines = host.sshd.known_hosts_lines().splitlines(keepends=True)
    host.known_hosts.write_text("".join(line for line in lines if "ecdsa" in line))
    with connect("lab", files=host.files) as session:
        assert session.alive


def test_hashed_names_and_host_key_aliases_are_found(host: Lab) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-H", "-f", str(host.known_hosts)], check=True, capture_output=True
    )
    assert "127.0.0.1" not in host.known_hosts.read_text()
    connect("lab", files=host.files).close()
    host.known_hosts.write_text(host.sshd.known_hosts_lines("alias.example"))
    host.write_config("HostKeyAlias alias.example")
    connect("lab", files=host.files).close()


# ── logging in ──


def test_a_key_that_is_not_authorized_is_refused_with_its_name(host: Lab) -> None:
    (host.sshd.folder / "authorized_keys").write_text("")
    with pytest.raises(AuthRefused, match="client_key"):
        connect("lab", files=host.files)


def test_an_encrypted_key_without_agent_says_ssh_add(host: Lab) -> None:
    locked = keygen(host.folder / "locked", phrase="secret")
    host.write_config(f"IdentityFile {locked}")
    host.key.unlink()
    with pytest.raises(AuthRefused, match="encrypted") as caught:
        connect("lab", files=host.files)
    assert caught.value.hint == f"ssh-add {locked}"


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_every_kind_of_key_logs_in(host: Lab, kind: str) -> None:
    key = keygen(host.folder / f"mine_{kind}", kind)
    (host.sshd.folder / "authorized_keys").write_text(Path(f"{key}.pub").read_text())
    host.write_config(f"IdentityFile {key}")
    connect("lab", files=host.files).close()


def test_a_key_that_only_the_agent_can_open_logs_in(
    host: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = host.folder / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL)
    try:
        for _ in range(200):
            if path.exists():
                break
            threading.Event().wait(0.02)
        env = os.environ | {"SSH_AUTH_SOCK": str(path)}
        subprocess.run(["ssh-add", "-q", str(host.key)], env=env, check=True, capture_output=True)
        host.key.write_text("taken away")
        host.write_config("IdentityAgent SSH_AUTH_SOCK")
        monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
        connect("lab", files=host.files).close()
    finally:
        agent.kill()
        agent.wait()


# ── getting there ──


@pytest.mark.parametrize("bad", ["-oProxyCommand=x", "a b", "h:0", "h:x", "h\n", "", "::1", "@h"])
def test_a_target_that_could_be_something_else_is_refused(bad: str) -> None:
    with pytest.raises(BadTarget):
        connect(bad)


def test_a_closed_port_and_an_unknown_name_are_unreachable(host: Lab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    for target in (f"127.0.0.1:{port}", "no-such-host.invalid"):
        with pytest.raises(Unreachable):
            connect(target, files=host.files)


def test_a_server_that_never_greets_is_given_up(host: Lab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        host.known_hosts.write_text(host.sshd.known_hosts_lines(f"[127.0.0.1]:{port}"))
        with pytest.raises(Unreachable):
            connect(f"127.0.0.1:{port}", files=host.files, timeout=1)


def test_a_chain_of_jump_hosts_is_followed_and_each_is_checked(host: Lab) -> None:
    jumps = [Sshd(host.folder / f"jump{n}", host.key) for n in (1, 2)]
    try:
        hosts = "".join(
            f"Host jump{n}\n  HostName 127.0.0.1\n  Port {jump.port}\n"
            for n, jump in enumerate(jumps, 1)
        )
        host.write_config("ProxyJump jump1,jump2", hosts=hosts)
        lines = host.sshd.known_hosts_lines()
        host.known_hosts.write_text(lines + jumps[0].known_hosts_lines())
        with pytest.raises(UnknownHost, match=str(jumps[1].port)):
            connect("lab", files=host.files)
        host.known_hosts.write_text(lines + "".join(j.known_hosts_lines() for j in jumps))
        with connect("lab", files=host.files) as session:
            assert answer(session, "echo", "through") == (b"through\n", 0)
            assert session.direct_address is None
            assert all(jump.sessions() for jump in jumps)
    finally:
        for jump in jumps:
            jump.stop()


def test_jump_hosts_in_a_circle_are_refused(host: Lab) -> None:
    host.write_config(
        "ProxyJump other",
        hosts="Host other\n  HostName 127.0.0.2\n  ProxyJump lab\n",
    )
    with pytest.raises(Unreachable, match="circle"):
        connect("lab", files=host.files)


def test_a_proxy_command_carries_the_session(host: Lab) -> None:
    program = host.folder / "proxy.py"
    program.write_text(
        "import os, socket, sys, threading\n"
        "s = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
        "def up():\n"
        "    while d := os.read(0, 65536): s.sendall(d)\n"
        "    s.shutdown(socket.SHUT_WR)\n"
        "threading.Thread(target=up, daemon=True).start()\n"
        "while d := s.recv(65536): os.write(1, d)\n"
    )
    host.write_config(f"ProxyCommand python3 {program} %h %p")
    with connect("lab", files=host.files) as session:
        assert answer(session, "echo", "proxied") == (b"proxied\n", 0)


def test_include_and_match_of_the_configuration_are_honoured(host: Lab) -> None:
    more = host.folder / "more"
    more.write_text(f"Match originalhost short\n  HostName 127.0.0.1\n  Port {host.sshd.port}\n")
    host.write_config(hosts=f"Include {more}")
    connect("short", files=host.files).close()


def test_files_can_be_named_by_the_environment(host: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPT_SSH_CONFIG", str(host.config))
    monkeypatch.setenv("CKPT_KNOWN_HOSTS", str(host.known_hosts))
    connect("lab").close()


def test_a_configuration_with_a_mistake_is_named(host: Lab) -> None:
    host.config.write_text("Host lab\n  Prot 22\n")
    with pytest.raises(Unreachable, match="prot"):
        connect("lab", files=host.files)
    with pytest.raises(TransportFault, match="no such file"):
        connect("lab", files=ConfigFiles(Path("/nonexistent/config"), None))


# ── the end ──


def test_a_killed_server_is_noticed_at_once(host: Lab) -> None:
    with connect("lab", files=host.files) as session:
        with session.open_command(["cat"]) as process:
            link = FrameLink(process)
            host.sshd.kill_sessions()
            with pytest.raises(LinkLost):
                link.recv(10)
        assert not session.alive
        with pytest.raises(LinkLost):
            session.open_command(["true"])


def test_a_server_that_stops_answering_is_given_up_after_the_keepalives(host: Lab) -> None:
    host.write_config("ServerAliveInterval 1\n  ServerAliveCountMax 2")
    with (
        connect("lab", files=host.files) as session,
        session.open_command(["cat"]) as process,
    ):
        host.sshd.kill_sessions(signal.SIGSTOP)
        try:
            with pytest.raises(LinkLost):
                FrameLink(process).recv(30)
        finally:
            host.sshd.kill_sessions(signal.SIGCONT)


def test_a_session_that_is_only_quiet_stays(host: Lab) -> None:
    host.write_config("ServerAliveInterval 1\n  ServerAliveCountMax 1")
    with (
        connect("lab", files=host.files) as session,
        session.open_command(["sh", "-c", "sleep 3.5; echo awake"]) as process,
    ):
        assert process.receive(100, 10) == b"awake\n"


def test_a_failed_login_leaves_nothing_behind_many_times_over(host: Lab) -> None:
    (host.sshd.folder / "authorized_keys").write_text("")
    for _ in range(5):
        with pytest.raises(AuthRefused):
            connect("lab", files=host.files)
