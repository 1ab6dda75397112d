"""The moments in which a container gets, loses and regains its network: netlink, no program.

What flows. A container in a user namespace must own its network namespace (CRIU refuses it
otherwise, and TCP repair needs it), so the namespace is made by the container's first process, at a
restore by CRIU, and we come with the cable:

    prepare (host.py)   addresses claimed, bridge and firewall there      any time before: 10-50 ms
    plug                lo, eth0 with MAC, addresses, routes, sysctls     in the frozen window: 1 ms
    attach              the cable's host end becomes a bridge's port      0.3 ms
    announce            neighbours learn the place (announce.py)          does not block
    detach              the host end leaves the bridge and goes down      0.3 ms

What can go wrong. Between plug and attach the container has its addresses, but nobody reaches it: a
namespace whose sockets CRIU has not restored yet would answer a live connection's packets with RST.
The gate is membership in the bridge, not the link's state: both ends of the cable are up since
plug, because the kernel starts an interface's queue only some time after its carrier came
(linkwatch, a work queue), and drops what is sent before. An unattached host end is a dead end: no
ARP, no IPv6, no address.

Why the pair is born at plug: see links.create_veth. Why the index is fixed: CRIU and the container
remember indexes (scope of link-local addresses, SO_BINDTODEVICE, IP_PKTINFO), so eth0 has the same
one on every host.
"""

from __future__ import annotations

import contextlib
import errno
import os

from runtime import syscalls
from runtime.errors import BadInput, WrongState, from_os_error
from runtime.network import links
from runtime.network import netlink as nl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

# Free in a fresh namespace: the kernel's own fallback tunnels get the numbers right after lo's.
CONTAINER_INDEX = 64

# What a container's namespace gets before its link; the spec's own sysctls come after and win.
# - Root in a user namespace has no privilege on the host, so "privileged" ports protect nobody.
# - ping without CAP_NET_RAW: group range in ids of the initial user namespace, i.e. everybody.
# - The addresses are ours to choose: no detection of duplicates (an address would be unusable for
#   a second), no router advertisements (they would add addresses that don't move along).
DEFAULT_SYSCTLS = {
    "net.ipv4.ip_unprivileged_port_start": "0",
    "net.ipv4.ping_group_range": "0 2147483647",
    "net.ipv6.conf.default.accept_dad": "0",
    "net.ipv6.conf.default.accept_ra": "0",
}


class Prepared:
    """What `plug` needs to know, made ready by `host.prepare`. Travels as a dict between processes.

    ADDRESSES are "ip/prefix", GATEWAYS plain. HOST_END is the name of the cable's end on the host,
    "" for the kinds without one.
    """

    __slots__ = (
        "addresses", "bridge", "container_id", "gateways", "hairpin", "host_end",
        "interface", "kind", "mac", "mtu", "root_dir",
    )  # fmt: skip

    def __init__(
        self,
        *,
        container_id: str,
        root_dir: str,
        kind: str,
        bridge: str = "",
        host_end: str = "",
        interface: str = "eth0",
        mac: str = "",
        mtu: int = 1500,
        addresses: tuple[str, ...] | list[str] = (),
        gateways: tuple[str, ...] | list[str] = (),
        hairpin: bool = False,
    ) -> None:
        self.container_id = container_id
        self.root_dir = root_dir
        self.kind = kind
        self.bridge = bridge
        self.host_end = host_end
        self.interface = interface
        self.mac = mac
        self.mtu = mtu
        self.addresses = tuple(addresses)
        self.gateways = tuple(gateways)
        self.hairpin = hairpin

    def to_dict(self) -> dict[str, Any]:
        raw = {name: getattr(self, name) for name in self.__slots__}
        return {key: list(v) if isinstance(v, tuple) else v for key, v in raw.items()}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Prepared:
        return cls(**raw)

    @property
    def alias(self) -> str:
        """What the host end is marked with: whose it is, for people and for the sweep."""
        return f"ckpt {self.container_id} of {self.root_dir}"[:255]


@contextlib.contextmanager
def inside(netns_fd: int) -> Iterator[int]:
    """The calling thread's time in another network namespace; yields a descriptor of its own one.

    Only the thread moves (setns(2)). Sockets and /proc/sys/net opened meanwhile stay with that
    namespace.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.setns(netns_fd, syscalls.CLONE_NEWNET)
        try:
            yield home
        finally:
            syscalls.setns(home, syscalls.CLONE_NEWNET)
    finally:
        os.close(home)


@contextlib.contextmanager
def inside_of(pid: int) -> Iterator[int]:
    """`inside` the network namespace of process PID, which may not be the caller's own."""
    fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        ours = os.stat("/proc/thread-self/ns/net")
        if os.fstat(fd).st_ino == ours.st_ino:
            raise WrongState(
                doing="plugging in",
                target=f"process {pid}",
                why="it has no network namespace of its own",
            )
        with inside(fd) as home:
            yield home
    finally:
        os.close(fd)


def plug(prepared: Prepared, pid: int, sysctls: Mapping[str, str] | None = None) -> None:
    """Give the network namespace of process PID its interfaces.

    Nobody can reach it before `attach`. SYSCTLS are the spec's, "net.*" only. May be called again.
    Raises BadInput for a sysctl that doesn't exist, WrongState if PID shares the caller's
    namespace, other faults if the kernel refuses.
    """
    if prepared.kind == "host":
        return
    early, late = _sysctl_files(sysctls or {}, prepared.interface)
    try:
        with inside_of(pid) as home, nl.Socket() as inner:
            _write_sysctls(early)
            _fill(inner, prepared, home)
            _write_sysctls(late)
        if prepared.host_end:
            _ready_host_end(prepared)
    except OSError as error:
        raise from_os_error(error, doing="plugging in", target=_what(error)) from error


def _fill(inner: nl.Socket, prepared: Prepared, home: int) -> None:
    """Everything inside the container's namespace, as one datagram."""
    link = links.find(inner, prepared.interface) if prepared.host_end else None
    plugged = link is not None and link.mac == prepared.mac
    try:
        inner.request(*_interior(prepared, home, cable=not plugged))
    except FileExistsError:
        # The cable of this container's previous life: the kernel takes namespaces down some time
        # after their last process. Waiting for that would cost more than removing it.
        with inside(home):
            remove_host_end(prepared.host_end)
        inner.request(*_interior(prepared, home, cable=True))


def _interior(prepared: Prepared, host_netns: int, *, cable: bool) -> list[nl.Message]:
    messages = [links.change(links.LOOPBACK, "lo", up=True)]
    if not prepared.host_end:
        return messages
    if cable:
        messages.append(
            links.create_veth(
                prepared.interface,
                prepared.mac,
                prepared.mtu,
                index=CONTAINER_INDEX,
                peer=prepared.host_end,
                peer_mac=_host_mac(prepared.mac),
                peer_netns=host_netns,
            )
        )
    messages += [links.add_address(CONTAINER_INDEX, a) for a in prepared.addresses]
    messages += [links.add_default_route(CONTAINER_INDEX, g) for g in prepared.gateways]
    return messages


def _host_mac(mac: str) -> str:
    # A bridge without an address of its own takes the lowest of its ports' ones, and its hosts'
    # neighbours would have to learn it anew with each container. 0xfe is above any vendor's.
    return f"fe{mac[2:]}"


def _ready_host_end(prepared: Prepared) -> None:
    _disable_ipv6(prepared.host_end)
    with nl.Socket() as outer:
        end = _need(outer, prepared.host_end)
        what = f"link {prepared.host_end}"
        outer.request(links.change(end.index, what, up=True, alias=prepared.alias))


def attach(prepared: Prepared) -> None:
    """From now on the container can speak and be spoken to. Fine if it could already."""
    if not prepared.host_end:
        return
    try:
        with nl.Socket() as sock:
            end, bridge = _need(sock, prepared.host_end), _need(sock, prepared.bridge)
            what = f"{prepared.host_end} to bridge {prepared.bridge}"
            # First up, then a port: the other way round the carrier would come late (see above).
            messages = [
                links.change(end.index, what, up=True),
                links.change(end.index, what, master=bridge.index),
            ]
            if prepared.hairpin:
                messages.append(links.hairpin(end.index, what))
            sock.request(*messages)
    except OSError as error:
        raise from_os_error(error, doing="attaching", target=_what(error)) from error


def detach(prepared: Prepared) -> None:
    """From now on the container can neither speak nor be spoken to. Fine if it is so already.

    Its interface, addresses and routes stay, so that `attach` brings everything back.
    """
    if not prepared.host_end:
        return
    try:
        with nl.Socket() as sock:
            end = links.find(sock, prepared.host_end)
            if end is not None:
                what = f"{prepared.host_end} from its bridge"
                sock.request(links.change(end.index, what, up=False, master=0))
    except OSError as error:
        if error.errno == errno.ENODEV:
            # Gone since it was found: a dead container's network namespace takes the cable along.
            return
        raise from_os_error(error, doing="detaching", target=_what(error)) from error


def remove_host_end(name: str) -> None:
    """Delete the cable, both ends; fine if it is gone. Takes 20 ms: not for the frozen window."""
    if not name:
        return
    with nl.Socket() as sock:
        end = links.find(sock, name)
        if end is not None:
            sock.request(links.delete(end.index, f"link {name}"))


def _need(sock: nl.Socket, name: str) -> links.Link:
    link = links.find(sock, name)
    if link is None:
        raise OSError(errno.ENODEV, "no such interface", name)
    return link


def _what(error: OSError) -> str:
    return str(error.filename or "the network")


def _disable_ipv6(interface: str) -> None:
    # Without IPv6 in the kernel there is no such file, and nothing to switch off.
    with contextlib.suppress(FileNotFoundError):
        _write(f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6", "1")


def _sysctl_files(
    given: Mapping[str, str], interface: str
) -> tuple[list[tuple[str, str, bool]], list[tuple[str, str, bool]]]:
    """(path, value, required) for what comes before the link exists, and what is about the link."""
    early = [(sysctl_path(name), value, False) for name, value in DEFAULT_SYSCTLS.items()]
    late: list[tuple[str, str, bool]] = []
    for name, value in given.items():
        path = sysctl_path(name)
        (late if f"/{interface}/" in path else early).append((path, value, True))
    return early, late


def sysctl_path(name: str) -> str:
    """The file of a "net.*" sysctl, dots or slashes between its parts; raises BadInput.

    As in sysctl(8) the first separator decides, so that an interface's name may contain dots.
    """
    slashes = "/" in name and name.index("/") < (name + ".").index(".")
    parts = name.split("/" if slashes else ".")
    plain = all(part and part not in (".", "..") and "/" not in part for part in parts)
    if parts[0] != "net" or len(parts) < 3 or not plain or "\0" in name:
        raise BadInput(
            doing="setting sysctl",
            target=repr(name),
            why="only those below net. belong to the network namespace",
        )
    return "/proc/sys/" + "/".join(parts)


def _write_sysctls(values: list[tuple[str, str, bool]]) -> None:
    for path, value, required in values:
        try:
            _write(path, value)
        except OSError as error:
            if not required and error.errno == errno.ENOENT:
                continue  # a kernel without IPv6, for example
            name = path.removeprefix("/proc/sys/").replace("/", ".")
            if error.errno in (errno.ENOENT, errno.EINVAL):
                why = "there is no such sysctl" if error.errno == errno.ENOENT else "invalid value"
                raise BadInput(doing="setting sysctl", target=f"{name}={value}", why=why) from error
            raise from_os_error(error, doing="setting sysctl", target=f"{name}={value}") from error


def _write(path: str, value: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)
