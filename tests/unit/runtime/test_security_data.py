"""Capabilities, limits and kernel settings of a spec: what is taken, what is refused by name."""

from __future__ import annotations

import resource
from typing import Any

import pytest

from runtime.errors import BadInput, NotPermitted, RuntimeFault, Unsupported
from runtime.security import paths, rlimits
from runtime.security.capabilities import DEFAULT, NAMES, NUMBERS, Capabilities, number_of
from runtime.security.rlimits import Limit


class TestCapabilities:
    def test_numbers_are_the_kernels(self) -> None:
        assert NUMBERS["CAP_CHOWN"] == 0
        assert NUMBERS["CAP_SYS_ADMIN"] == 21
        assert NUMBERS["CAP_CHECKPOINT_RESTORE"] == 40

    @pytest.mark.parametrize("name", ["CAP_SYS_ADMIN", "sys_admin", " cap_Sys_Admin "])
    def test_names_in_any_form(self, name: str) -> None:
        assert number_of(name) == 21

    @pytest.mark.parametrize("name", ["", "CAP_", "CAP_SYS_ADMN", "21"])
    def test_no_such_capability(self, name: str) -> None:
        with pytest.raises(BadInput, match="no such capability"):
            number_of(name)

    def test_without_any_in_the_spec_there_are_none(self) -> None:
        plan = Capabilities.from_spec(None).plan()
        assert plan == {
            "bounding": 0, "effective": 0, "inheritable": 0, "permitted": 0, "ambient": []
        }  # fmt: skip

    def test_there_and_back(self) -> None:
        spec = {
            "bounding": ["CAP_CHOWN", "CAP_KILL"],
            "effective": ["CAP_KILL"],
            "permitted": ["CAP_KILL"],
            "inheritable": ["CAP_KILL"],
            "ambient": ["CAP_KILL"],
        }
        capabilities = Capabilities.from_spec(spec)
        assert capabilities.to_spec() == spec
        assert capabilities.plan()["bounding"] == 0b100001
        assert capabilities.plan()["ambient"] == [5]

    @pytest.mark.parametrize(
        ("spec", "name"),
        [
            ({"bound": []}, "bound"),
            ({"bounding": "CAP_CHOWN"}, "bounding"),
            ({"bounding": [5]}, "bounding"),
            ({"bounding": ["CAP_X"]}, "CAP_X"),
            ({"effective": ["CAP_KILL"]}, "effective.CAP_KILL"),
            ({"inheritable": ["CAP_KILL"]}, "inheritable.CAP_KILL"),
            ({"ambient": ["CAP_KILL"]}, "ambient.CAP_KILL"),
            (
                {"ambient": ["CAP_KILL"], "permitted": ["CAP_KILL"], "bounding": ["CAP_KILL"]},
                "ambient.CAP_KILL",
            ),
        ],
    )
    def test_sets_that_the_kernel_would_refuse(self, spec: dict[str, Any], name: str) -> None:
        with pytest.raises(BadInput) as caught:
            Capabilities.from_spec(spec)
        assert name in str(caught.value)

    def test_adding_and_dropping(self) -> None:
        plus = Capabilities.default(add=["net_admin"], drop=["mknod"]).names()
        assert plus == (frozenset(DEFAULT) | {"CAP_NET_ADMIN"}) - {"CAP_MKNOD"}
        assert Capabilities.default(drop=["ALL"]).names() == frozenset()
        assert Capabilities.default(add=["KILL"], drop=["ALL"]).names() == {"CAP_KILL"}
        everything_but = Capabilities.default(add=["ALL"], drop=["KILL"]).names()
        assert everything_but == frozenset(NAMES) - {"CAP_KILL"}

    def test_the_default_reaches_nothing_outside_and_nothing_is_inheritable(self) -> None:
        default = Capabilities.default()
        assert default.inheritable == default.ambient == frozenset()
        for name in ("SYS_ADMIN", "SYS_MODULE", "SYS_RAWIO", "NET_ADMIN", "SYS_PTRACE", "BPF"):
            assert f"CAP_{name}" not in default.names()

    def test_what_this_process_cannot_give_is_told(self) -> None:
        chosen = Capabilities.default(add=["KILL", "SYS_RESOURCE"], drop=["ALL"])
        assert chosen.beyond(1 << NUMBERS["CAP_KILL"]) == ["CAP_SYS_RESOURCE"]


class TestRlimits:
    def test_there_and_back(self) -> None:
        spec = [
            {"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 2**64 - 1},
        ]
        limits = rlimits.from_spec(spec)
        assert [limit.to_spec() for limit in limits] == spec
        assert limits[1].plan() == {"resource": resource.RLIMIT_CORE, "soft": 0, "hard": -1}

    @pytest.mark.parametrize(
        ("item", "why"),
        [
            ({"type": "RLIMIT_FILES", "soft": 1, "hard": 1}, "RLIMIT_FILES"),
            ({"type": "RLIMIT_NOFILE", "soft": 5, "hard": 4}, "above hard"),
            ({"type": "RLIMIT_NOFILE", "soft": 2**64 - 1, "hard": 4}, "above hard"),
            ({"type": "RLIMIT_NOFILE", "soft": -1, "hard": 4}, "isn't a number"),
            ({"type": "RLIMIT_NOFILE", "soft": 1}, "isn't a number"),
            ({"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2, "max": 3}, "max"),
            (5, "object"),
        ],
    )
    def test_wrong_ones(self, item: Any, why: str) -> None:
        with pytest.raises(BadInput, match=why):
            rlimits.from_spec([item])

    def test_twice_the_same(self) -> None:
        with pytest.raises(BadInput, match="twice"):
            rlimits.from_spec([{"type": "RLIMIT_CPU", "soft": 1, "hard": 1}] * 2)

    @pytest.mark.parametrize(
        ("text", "limit"),
        [
            ("nofile=1024:4096", Limit("RLIMIT_NOFILE", 1024, 4096)),
            ("core=0", Limit("RLIMIT_CORE", 0, 0)),
            ("memlock=1:unlimited", Limit("RLIMIT_MEMLOCK", 1, -1)),
        ],
    )
    def test_typed(self, text: str, limit: Limit) -> None:
        assert rlimits.parse(text) == limit

    @pytest.mark.parametrize("text", ["", "nofile", "nofile=", "files=1", "nofile=2:1", "cpu=x"])
    def test_mistyped(self, text: str) -> None:
        with pytest.raises(BadInput):
            rlimits.parse(text)

    def test_lowering_is_always_possible(self) -> None:
        limits = (Limit("RLIMIT_CORE", 0, 0),)
        assert rlimits.applicable(limits, may_raise=False) == (limits, [])

    def test_raising_needs_a_privilege_and_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rlimits, "_own_hard", lambda number: 4096)
        wish = (Limit("RLIMIT_NOFILE", 8192, 8192),)
        with pytest.raises(NotPermitted, match="CAP_SYS_RESOURCE"):
            rlimits.applicable(wish, may_raise=False)
        lowered, notes = rlimits.applicable(wish, may_raise=False, clamp=True)
        assert lowered == (Limit("RLIMIT_NOFILE", 4096, 4096),)
        assert "8192 lowered to 4096" in notes[0]
        assert rlimits.applicable(wish, may_raise=True) == (wish, [])
        unlimited = (Limit("RLIMIT_NOFILE", -1, -1),)
        assert rlimits.applicable(unlimited, may_raise=False, clamp=True)[0] == lowered


class TestSysctls:
    def test_those_of_a_namespace_are_taken_with_either_separator(self) -> None:
        spec = {"net.core.somaxconn": "1024", "net/ipv4/conf/eth0.5/forwarding": "1"}
        spec["kernel.shmmax"] = "65536"
        checked = paths.sysctls_from_spec(spec, own_network=True, own_ipc=True)
        assert {paths.sysctl_path(key) for key in checked} == {
            "/proc/sys/net/core/somaxconn",
            "/proc/sys/net/ipv4/conf/eth0.5/forwarding",
            "/proc/sys/kernel/shmmax",
        }

    @pytest.mark.parametrize(
        ("key", "kind"),
        [
            ("kernel.core_pattern", Unsupported),
            ("vm.swappiness", Unsupported),
            ("fs.file-max", Unsupported),
            ("kernel.hostname", Unsupported),
            ("kernel.shmmaxx", Unsupported),
            ("net/../kernel/core_pattern", BadInput),
            ("net/..", BadInput),
            ("net..x", BadInput),
            ("net", BadInput),
            ("", BadInput),
            ("/net/x", BadInput),
        ],
    )
    def test_those_of_the_host_are_refused_by_name(
        self, key: str, kind: type[RuntimeFault]
    ) -> None:
        with pytest.raises(kind) as caught:
            paths.sysctls_from_spec({key: "1"}, own_network=True, own_ipc=True)
        assert key in str(caught.value)

    @pytest.mark.parametrize(
        ("key", "network", "ipc"),
        [("net.core.somaxconn", False, True), ("kernel.sem", True, False)],
    )
    def test_only_with_a_namespace_of_its_own(self, key: str, network: bool, ipc: bool) -> None:
        with pytest.raises(Unsupported, match="namespace of its own"):
            paths.sysctls_from_spec({key: "1"}, own_network=network, own_ipc=ipc)

    @pytest.mark.parametrize("value", [1, None, "a\nb", "a\0b", "x" * 5000])
    def test_values_are_one_line(self, value: Any) -> None:
        with pytest.raises(BadInput, match="one line"):
            paths.sysctls_from_spec({"net.a": value}, own_network=True, own_ipc=True)

    def test_the_defaults_pass_their_own_check(self) -> None:
        defaults = paths.default_sysctls(own_network=True)
        checked = paths.sysctls_from_spec(defaults, own_network=True, own_ipc=True)
        assert checked == defaults
        assert paths.default_sysctls(own_network=False) == {}


def test_hidden_paths_are_absolute_and_disjoint() -> None:
    everything = [*paths.MASKED, *paths.READ_ONLY]
    assert all(path.startswith(("/proc/", "/sys/")) for path in everything)
    assert len(set(everything)) == len(everything)


def test_default_devices_are_allowed_by_the_default_device_rules() -> None:
    from runtime.cgroups.devices import DevicePolicy, default_rules

    policy = DevicePolicy.of(default_rules())
    for node in paths.default_devices():
        assert policy.allows(node["type"], node["major"], node["minor"], "rwm")
