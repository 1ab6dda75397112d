"""What fails in the middle: CRIU, the link, the disk, the restore. Before COMMIT the source just goes on."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from runtime.paths import HostPaths
from tests import needs
from tests.e2e.migrate.world import World, criu_of, eventually, kill
from tests.lab.lab import Host
from tests.patience import patient

pytestmark = needs.MIGRATION


@pytest.fixture(autouse=True)
def cold(world: World) -> None:
    world.words = ("--mode", "cold")


def fails(process: subprocess.Popen[str], code: int) -> str:
    """PROCESS ends with CODE and one line that says why."""
    _, errors = process.communicate(timeout=patient(100))
    assert process.returncode == code, errors
    said = [line for line in errors.splitlines() if line.startswith("ckpt: ")]
    assert len(said) == 1, errors
    return said[0]


def stays(world: World, client: object) -> None:
    world.runs_at(world.a, client)  # type: ignore[arg-type]
    world.nothing_at(world.b)


@pytest.mark.parametrize("point", ["dump", "freeze-done"])
def test_criu_killed_at_the_source(world: World, point: str) -> None:
    """Its sockets were in repair mode, and its network locked: both must be mended."""
    world.run("-m", "8")
    client = world.connect()
    process = world.begin(env=world.stop_at(point, "wait"))
    world.reached(point)
    for pid in criu_of(world.a, "dump"):
        kill(pid)
    world.go_on(point)
    # If everything was dumped it moves all the same. In any case there is one copy, and its client is served.
    _, errors = process.communicate(timeout=patient(100))
    assert process.returncode in (0, 20), errors
    if process.returncode:
        stays(world, client)
    else:
        world.runs_at(world.b, client)
        world.nothing_at(world.a)


def test_criu_and_the_command_killed_at_the_source(world: World) -> None:
    world.run("-m", "8")
    client = world.connect()
    process = world.begin(env=world.stop_at("freeze-done", "wait"))
    world.reached("freeze-done")
    for pid in criu_of(world.a, "dump"):
        kill(pid)
    for word in world.processes(world.a):
        if " migrate w b" in word:
            kill(int(word.split()[0]))
    process.wait(20)
    stays(world, client)


@pytest.mark.parametrize("point", ["brace", "prepare"])
def test_criu_killed_at_the_destination(world: World, point: str) -> None:
    world.run("-m", "8")
    client = world.connect()
    process = world.begin(env=world.stop_at(point, "wait", there=True))
    world.reached(point)
    if point == "prepare":
        eventually("CRIU restores", lambda: criu_of(world.b, "restore"))
        for pid in criu_of(world.b, "restore"):
            kill(pid)
        # Before it is said to be prepared: who dies later has been heard.
        eventually("CRIU is dead", lambda: not criu_of(world.b, "restore"))
        world.go_on(point)
    else:
        world.go_on(point)
        for pid in eventually("CRIU restores", lambda: criu_of(world.b, "restore")):
            kill(pid)
    process.communicate(timeout=patient(100))
    assert process.returncode != 0
    stays(world, client)


@pytest.mark.parametrize(
    "point", ["sync", "freeze", "prepare", "journal-prepared"], ids=lambda point: f"at-{point}"
)
def test_a_step_that_fails(world: World, point: str) -> None:
    world.run("-m", "4")
    client = world.connect()
    there = point in ("prepare", "journal-prepared")
    process = world.begin(env=world.stop_at(point, "fail", there=there))
    process.communicate(timeout=patient(100))
    assert process.returncode != 0
    stays(world, client)


def test_a_file_that_the_restore_needs_is_gone(world: World) -> None:
    """CRIU's own failure at the other host, in words, and its log is kept there."""
    world.run("-m", "4")
    client = world.connect()
    world.migrate()
    world.migrate(source=world.b)
    (program,) = [
        path / "fs/bin/ticker"
        for path in (world.b.root / "layers").iterdir()
        if (path / "fs/bin/ticker").exists()
    ]
    program.rename(world.scratch / "ticker")
    done = world.migrate(check=False)
    shutil.move(world.scratch / "ticker", program)
    assert done.returncode == 37, done.stderr
    line, *lines, where = done.stderr[done.stderr.index("ckpt: ") :].splitlines()
    assert "restoring" in line
    assert "missing: bin/ticker" in line
    assert any("Error" in line and "bin/ticker" in line for line in lines), done.stderr
    (log,) = (world.b.root / "logs").iterdir()
    assert where == f"  the whole log: {log} on b"
    stays(world, client)


def test_a_disk_that_fills_up_at_the_destination(world: World) -> None:
    world.run("-m", "1", network="none")
    small = world.lab.directory / "small"  # where containers' users may go
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m", "small", small], check=True)
    try:
        stop = f"CKPT_TEST_STOP_AT=receive:wait={world.scratch / 'receive'}"
        env = {"CKPT_REMOTE": f"env CKPT_ROOT={small} {stop} ckpt"}
        process = world.begin(env=env)
        world.reached("receive")
        with (small / "ballast").open("wb") as file, pytest.raises(OSError):
            while True:
                file.write(bytes(1 << 20))
                file.flush()
        world.go_on("receive")
        process.communicate(timeout=patient(100))
        assert process.returncode != 0
        assert world.state(world.a) == "running"
        eventually("nothing is there", lambda: not any((small / "containers").iterdir()))
    finally:
        subprocess.run(["umount", "-l", small], check=True)
        small.rmdir()


# ---- the link


@pytest.mark.parametrize("point", ["sync", "dump"])
def test_the_link_breaks_before_commit(world: World, point: str) -> None:
    world.run("-m", "4")
    client = world.connect()
    config = quick(world)
    process = world.begin(env={**world.stop_at(point, "wait"), **config})
    world.reached(point)
    world.lab.link_down("b")
    world.go_on(point)
    process.communicate(timeout=patient(150))
    assert process.returncode != 0
    client.beat()
    assert world.state(world.a) == "running"
    world.lab.link_up("b")
    world.a.run(["ckpt", "recover"], env=config)
    world.nothing_at(world.b, patience=100)
    assert not any(world.a.root.glob("migrations/*.journal"))


def test_the_link_breaks_when_it_is_prepared_and_the_destination_waits(world: World) -> None:
    world.run("-m", "4")
    client = world.connect()
    config = quick(world)
    process = world.begin(env={**config, **world.stop_at("journal-prepared", "wait", there=True)})
    world.reached("journal-prepared")
    world.lab.link_down("b")
    world.go_on("journal-prepared")
    process.communicate(timeout=patient(150))
    assert process.returncode != 0
    world.runs_at(world.a, client)
    assert world.journal(world.b)["state"] == "prepared"
    eventually("the agent has gone", lambda: not agents(world, world.b), patience=100)
    assert world.state(world.b) == "restoring"
    # Nobody there may touch it, and recover there only waits.
    refused = world.b.run(["ckpt", "rm", "-f", "w"], check=False)
    assert refused.returncode == 11, refused.stderr
    assert "waits for that host's word" in refused.stderr
    assert "waits for the word of" in world.b.ckpt("recover")
    world.lab.link_up("b")
    assert "given up: it runs here" in world.a.run(["ckpt", "recover"], env=config).stdout
    stays(world, client)


@pytest.mark.parametrize("assume", ["aborted", "committed"])
def test_a_person_decides_when_the_source_is_gone_for_good(world: World, assume: str) -> None:
    world.run("-m", "4")
    client = world.connect()
    stop = world.stop_at("journal-received", "wait")
    stop["CKPT_TEST_STOP_AT"] += "," + world.stop_at("heal", "fail")["CKPT_TEST_STOP_AT"]
    process = world.begin(env=stop)
    world.reached("journal-received")
    eventually("it is prepared", lambda: world.journal(world.b)["state"] == "prepared")
    for word in agents(world, world.b):
        kill(int(word.split()[0]))
    process.kill()
    process.wait()
    world.reached("heal")
    world.runs_at(world.a, client)
    if assume == "committed":  # the source is gone with everything on it
        world.a.ckpt("rm", "-f", "w")
        for path in HostPaths.of(str(world.a.root)).journals.iterdir():
            path.unlink()
    said = recovered(world, world.b, words=("--assume", assume))
    if assume == "committed":
        assert "finished: it runs here" in said
        world.runs_at(world.b)
    else:
        assert "given up" in said
        assert "given up: it runs here" in recovered(world, world.a)
        stays(world, client)


def test_the_command_dies_after_commit_and_recover_finishes_what_could_not_be_said(
    world: World,
) -> None:
    """The healing by itself fails too, since the other host can't be reached: a person does it later."""
    world.run("-m", "4")
    client = world.connect()
    config = quick(world)
    kill_it = world.stop_at("journal-committed", "kill")
    heal = world.stop_at("heal", "fail")["CKPT_TEST_STOP_AT"]
    kill_it["CKPT_TEST_STOP_AT"] += f",{heal}"
    process = world.begin(env={**config, **kill_it})
    process.communicate(timeout=patient(60))
    world.reached("heal")
    assert world.journal(world.a)["state"] == "committed"
    assert world.journal(world.b)["state"] == "prepared"
    # Held there, frozen here: it must not come back here by any way.
    refused = world.a.run(["ckpt", "start", "w"], check=False)
    assert refused.returncode == 11, refused.stderr
    assert "it has moved to b" in refused.stderr
    assert (
        "finished: it runs at the destination"
        in world.a.run(["ckpt", "recover"], env=config).stdout
    )
    world.runs_at(world.b, client)
    world.nothing_at(world.a)
    assert not any(world.a.root.glob("migrations/*.journal"))


def test_the_link_breaks_after_commit(world: World) -> None:
    """The command tries for a minute; asked twice to end it leaves the rest to recover."""
    world.run("-m", "4")
    client = world.connect()
    config = quick(world)
    process = world.begin(env={**config, **world.stop_at("bury", "wait")})
    world.reached("bury")
    world.lab.link_down("b")
    world.go_on("bury")
    process.send_signal(2)
    process.send_signal(15)
    line = fails(process, 1)
    assert "ckpt recover goes on with it" in line
    world.lab.link_up("b")
    recovered(world, world.a, config)
    world.runs_at(world.b, client)
    world.nothing_at(world.a)


def test_the_destination_goes_down_after_commit(world: World) -> None:
    """What was prepared is lost, as every process of that host; its files are there, and nothing runs twice."""
    world.run("-m", "4")
    stop = world.stop_at("journal-committed", "kill")
    stop["CKPT_TEST_STOP_AT"] += "," + world.stop_at("heal", "fail")["CKPT_TEST_STOP_AT"]
    process = world.begin(env=stop)
    process.communicate(timeout=patient(60))
    world.reached("heal")
    for word in world.processes(world.b):
        kill(int(word.split()[0]))
    eventually("its monitor is gone", lambda: world.state(world.b) == "lost")
    recovered(world, world.a)
    assert "what was prepared is lost; its files are here" in recovered(world, world.b)
    recovered(world, world.a)
    world.nothing_at(world.a)
    assert [path.name for path in world.b.root.glob("containers/*/rw/upper/gaps")] == ["gaps"]
    world.b.ckpt("start", "w")
    world.runs_at(world.b)


def recovered(
    world: World, host: Host, env: dict[str, str] | None = None, words: tuple[str, ...] = ()
) -> str:
    """What `ckpt recover` says, once those who heal by themselves are done (or have given up)."""

    def done() -> str:
        said: str = host.ckpt("recover", *words, env=env)
        return "" if "is under way" in said else said

    return str(eventually("nobody else is at it", done, patience=100))


def quick(world: World) -> dict[str, str]:
    """An SSH configuration that gives up a silent link soon; not so soon that a busy machine does."""
    config = world.scratch / "config"
    config.write_text(
        "ConnectTimeout 5\nServerAliveInterval 1\nServerAliveCountMax 8\n"
        + world.lab.login.config.read_text()
    )
    return {"CKPT_SSH_CONFIG": str(config)}


def agents(world: World, host: Host) -> list[str]:
    return [word for word in world.processes(host) if word.rstrip().endswith("agent")]
