"""What moves, moves whole: networks, files, layers, jobs, several containers, there and back; the report is true."""

from __future__ import annotations

import json
import time

import pytest

from tests import needs
from tests.e2e.migrate.world import World, eventually, refused
from tests.patience import patient

pytestmark = needs.MIGRATION


@pytest.fixture(autouse=True)
def cold(world: World) -> None:
    world.words = ("--mode", "cold")


def test_a_connection_survives_moving_there_and_back_and_there(world: World) -> None:
    world.run("-m", "16")
    client = world.connect()
    for source, target in ((world.a, world.b), (world.b, world.a), (world.a, world.b)):
        world.migrate(source=source)
        world.runs_at(target, client)
        world.nothing_at(source)


def test_the_reported_downtime_is_what_the_program_saw(world: World) -> None:
    world.run("-m", "32")
    began = time.time_ns()
    report = json.loads(world.migrate("--json").stdout)
    pauses = [length for end, length in world.gaps(world.b) if end > began]
    seen = max(pauses) / 1e6
    # Reported: from before the first task is stopped to when CRIU says that all run. The program stands still for
    # less, by what stopping, resuming and a busy machine take.
    assert report["downtime_ms"] >= seen - 5 - report["clock_error_ms"]
    assert report["downtime_ms"] <= seen + 150
    assert report["downtime_ms"] <= report["total_ms"]


def test_the_report_has_the_bytes_by_kind_and_the_phases(world: World) -> None:
    world.run("-m", "8", "-w")
    report = json.loads(world.migrate("--json").stdout)
    assert report["mode"] == "cold"
    assert report["state"] == "cleaned"
    assert report["lane"] in ("tls", "openssh", "paramiko")
    assert report["bytes"]["images"] > 8 << 20
    program = (world.rootfs / "bin/ticker").stat().st_size
    assert report["bytes"]["layers"] >= program
    assert report["bytes"]["total"] >= sum(report["bytes"][k] for k in ("images", "layers"))
    assert {"connect", "preflight", "layers", "files", "dump", "restore", "go"} <= set(
        report["phases_ms"]
    )
    back = json.loads(world.migrate("--json", source=world.b).stdout)
    assert back["bytes"]["layers"] == 0  # they are here already


@pytest.mark.parametrize(
    ("network", "options"),
    [("none", ()), ("host", ()), ("bridge", ()), ("bridge", ("--userns", "host"))],
)
def test_every_kind_of_network_moves(world: World, network: str, options: tuple[str, ...]) -> None:
    world.run("-m", "4", network=network, options=options)
    began = time.time_ns()
    world.migrate()
    world.runs_at(world.b)
    world.nothing_at(world.a)
    eventually("it ticks on", lambda: any(end > began for end, _ in world.gaps(world.b)))
    world.migrate(source=world.b)
    world.runs_at(world.a)
    world.nothing_at(world.b)


def test_files_that_change_meanwhile_are_what_they_were_when_it_stopped(world: World) -> None:
    world.run("-w")
    (upper,) = world.a.root.glob("containers/*/rw/upper")
    eventually("all files are there", lambda: len(list((upper / "w").iterdir())) == 50)
    world.migrate()
    (upper,) = world.b.root.glob("containers/*/rw/upper")

    def turns() -> list[int]:
        texts = [path.read_text() for path in (upper / "w").iterdir()]
        return sorted(int(text) for text in texts if text.endswith("\n"))

    # Each holds the number of the turn in which it was written last: no turn is missing.
    def gapless() -> bool:
        found = turns()
        return len(found) >= 49 and found[-1] - found[0] <= 51

    assert eventually("the files belong together", gapless)


@pytest.mark.parametrize("mode", ["cold", "warm"])
def test_a_named_volume_moves_along_there_and_back(world: World, mode: str) -> None:
    world.run("-w", "-m", "4", network="none", options=("-v", "data:/w", "-v", "notes:/notes:ro"))
    (world.a.root / "volumes/notes/one").write_text("kept")
    for source, target in ((world.a, world.b), (world.b, world.a)):
        files = source.root / "volumes/data"
        eventually("all files are there", lambda files=files: len(list(files.iterdir())) == 50)
        world.migrate("--mode", mode, source=source)
        world.runs_at(target)
        there = target.root / "volumes"
        # It writes on, where it is now; what could be written is nowhere else, what could only be read is at both.
        was = max((there / "data").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        before = was.stat().st_mtime_ns
        eventually("it writes on", lambda was=was, before=before: was.stat().st_mtime_ns > before)
        assert not files.exists()
        for host in (source, target):
            assert (host.root / "volumes/notes/one").read_text() == "kept"
        world.nothing_at(source)
    # What others use, or is called the same there, is refused by name; nothing was touched.
    world.b.ckpt("run", "-d", "--name", "x", "--network", "none", "-v", "data:/d",
                 str(world.rootfs), "--", "/bin/ticker")  # fmt: skip
    assert "volume data: container x uses one of that name there" in refused(world, 13)
    world.b.ckpt("rm", "-f", "x")
    (world.b.root / "volumes/data/other").write_text("mine")
    assert "volume data: the destination has one of that name" in refused(world, 13)
    assert (world.b.root / "volumes/data/other").read_text() == "mine"
    world.a.ckpt("run", "-d", "--name", "x", "--network", "none", "-v", "data:/d",
                 str(world.rootfs), "--", "/bin/ticker")  # fmt: skip
    assert "volume data: container x uses it here, too" in refused(world, 13)


def test_a_running_job_moves_along(world: World) -> None:
    world.run()
    job = world.a.popen(["ckpt", "exec", "w", "--", "/bin/ticker", "-m", "1"])
    eventually(
        "the job runs",
        lambda: len(world.jobs(world.a)) == 1,
    )
    world.migrate()
    world.runs_at(world.b)
    job.wait(30)
    jobs = world.jobs(world.b)
    assert len(jobs) == 1
    assert all("ended_ns" not in one for one in jobs.values())


def test_containers_move_at_the_same_time(world: World) -> None:
    for name in ("w", "x"):
        world.run("-m", "4", name=name, network="none")
    both = [
        world.a.popen(["ckpt", "migrate", name, "b"], stdout=-1, stderr=-1) for name in ("w", "x")
    ]
    for process in both:
        _, errors = process.communicate(timeout=patient(120))
        assert process.returncode == 0, errors
    for name in ("w", "x"):
        assert world.state(world.b, name) == "running"
    world.nothing_at(world.a)


@pytest.mark.parametrize("lane", ["tls", "openssh", "paramiko"])
def test_every_lane_carries_it(world: World, lane: str) -> None:
    world.run("-m", "4")
    client = world.connect()
    report = json.loads(world.migrate("--json", "--lane", lane).stdout)
    assert report["lane"] == lane
    world.runs_at(world.b, client)
    world.nothing_at(world.a)


def test_progress_is_lines_where_nobody_watches_and_silent_with_json(world: World) -> None:
    world.run("-m", "4")
    done = world.migrate()
    phases = [line.split()[2] for line in done.stderr.splitlines()]
    assert phases == [
        "connect", "preflight", "open", "layers", "files", "dump", "restore", "go", "clean",
    ]  # fmt: skip
    assert "w runs at b: stood still for" in done.stdout
    assert world.migrate("--json", source=world.b).stderr == ""


def test_a_dry_run_says_what_it_would_cost_and_touches_nothing(world: World) -> None:
    world.run("-m", "16")
    client = world.connect()
    plan = json.loads(world.migrate("--dry-run", "--json").stdout)
    assert plan["findings"] == []
    assert plan["forecast"]["bytes"]["memory"] >= 16 << 20
    assert plan["forecast"]["downtime_ms"] > 0
    assert plan["forecast"]["rate"] > 0
    text = world.migrate("--dry-run").stdout
    assert "CHECK" in text
    assert "nothing speaks against it" in text
    world.nothing_at(world.b)
    assert not any(world.a.root.glob("migrations/*"))
    world.runs_at(world.a, client)


def test_other_commands_wait_or_are_refused_while_it_moves(world: World) -> None:
    world.run("-m", "4")
    process = world.begin(env=world.stop_at("freeze", "wait"))
    world.reached("freeze")
    again = world.migrate(check=False)
    assert again.returncode == 11, again.stderr
    assert "another ckpt command is working on it" in again.stderr
    stop = world.a.popen(["ckpt", "stop", "w"], stderr=-1)
    world.go_on("freeze")
    _, errors = process.communicate(timeout=patient(60))
    assert process.returncode == 0, errors
    assert stop.wait(60) == 10  # it is gone from here
    world.runs_at(world.b)
