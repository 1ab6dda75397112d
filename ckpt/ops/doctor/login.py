"""What moving to another host takes at this end: OpenSSH's client, a key, hosts that are known."""

from __future__ import annotations

import os
import shutil
import socket
import struct
from pathlib import Path

from ckpt.ops.doctor.row import Probe, Row
from ckpt.ops.host import Host
from ckpt.ops.hosts import Registry
from runtime.programs import run

_CONSEQUENCE = "no migration to other hosts"
_REQUEST_IDENTITIES = 11
_IDENTITIES_ANSWER = 12
_PATIENCE = 1.0
_MOST = 1 << 18


def probes(host: Host) -> dict[str, Probe]:
    return {
        "SSH client": client,
        "SSH keys": keys,
        "known_hosts": lambda: known_hosts(host),
    }


def client() -> Row:
    program = shutil.which("ssh")
    if program is None:
        return Row("SSH client", "none", "warn", _CONSEQUENCE, "apt install openssh-client")
    said = run([program, "-V"], what="asking the version of").stderr.decode(errors="replace")
    return Row("SSH client", said.split(",")[0].strip() or program)


def keys() -> Row:
    """An agent that has keys, or a key file of the usual name."""
    held = _agent_keys()
    files = sorted(
        path.name
        for path in (Path.home() / ".ssh").glob("id_*")
        if path.suffix != ".pub" and path.is_file()
    )
    parts = [f"agent with {held} key{'' if held == 1 else 's'}"] if held is not None else []
    parts += files
    if os.environ.get("CKPT_SSH_CONFIG"):
        parts.append("those of $CKPT_SSH_CONFIG")
    value = ", ".join(parts) or "no agent, no key file"
    if held or files or os.environ.get("CKPT_SSH_CONFIG"):
        return Row("SSH keys", value)
    consequence = f"{_CONSEQUENCE}, unless ~/.ssh/config names a key of its own"
    return Row("SSH keys", value, "warn", consequence, "ssh-keygen, then ssh-copy-id HOST")


def _agent_keys() -> int | None:
    """How many keys the agent has; None without an agent (draft-ietf-sshm-ssh-agent)."""
    path = os.environ.get("SSH_AUTH_SOCK")
    if not path:
        return None
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
            agent.settimeout(_PATIENCE)
            agent.connect(path)
            agent.sendall(struct.pack(">IB", 1, _REQUEST_IDENTITIES))
            with agent.makefile("rb") as stream:
                head = stream.read(9)
    except OSError:
        return None
    if len(head) < 9:
        return None
    length, kind, count = struct.unpack(">IBI", head)
    return int(count) if kind == _IDENTITIES_ANSWER and length <= _MOST else None


def known_hosts(host: Host) -> Row:
    given = os.environ.get("CKPT_KNOWN_HOSTS")
    default = (Path.home() / ".ssh/known_hosts", Path("/etc/ssh/ssh_known_hosts"))
    places = (Path(given),) if given else default
    count = 0
    for place in (*places, Registry(host).keys_file):
        if place.is_file():
            lines = place.read_text(errors="replace").splitlines()
            count += sum(1 for line in lines if line.strip() and not line.startswith("#"))
    if count:
        return Row("known_hosts", f"{count} keys")
    fix = "ckpt host add NAME USER@HOST, and compare the fingerprint"
    return Row("known_hosts", "empty", "warn", "unknown hosts are refused, so all are", fix)
