"""What can be done with checkpoints that lie on a host: list, look into, verify, remove, prune, carry elsewhere."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from images.store import Store
from tests import needs
from tests.e2e.box import Box, opened, until
from tests.e2e.snagging import nothing_of, runs_on, start, with_snags

pytestmark = needs.CHECKPOINTS


@pytest.fixture
def box(ckpt_root: Path, small_rootfs: Path) -> Iterator[Box]:
    with opened(ckpt_root, with_snags(small_rootfs)) as made:
        yield made


def dumped(box: Box, *checkpoints: str) -> None:
    """Checkpoints of one container that counts and has written a file; it is gone afterwards."""
    start(box, "web", "hold", "/tmp/note", 100_000)
    for name in checkpoints:
        box("dump", "web", "--as", name, "--leave-running")
    box("rm", "-f", "web")


# ---- looking into


def test_inspect_shows_processes_files_sockets_memory_sizes_and_times(box: Box) -> None:
    script = "snags echo 7007 & cd /tmp; exec 5>note; exec snags memory 4000000"
    box.up("web", args=("sh", "-c", script))
    until(lambda: box("logs", "web").count("ready") == 2)
    box("dump", "web", "--as", "one", "--leave-running")

    found = json.loads(box("checkpoints", "inspect", "one", "--json"))
    processes = {process["pid"]: process for process in found["processes"]}
    assert processes[1]["comm"] == "init"
    assert sorted(process["comm"] for process in processes.values()) == ["init"] + 3 * ["snags"]
    main = next(p for p in processes.values() if p["ppid"] == 1 and len(p["files"]) == 4)
    assert main["directory"] == "/tmp"
    files = {file["fd"]: file for file in main["files"]}
    assert (files[5]["what"], files[5]["mode"]) == ("/tmp/note", "w")
    anonymous = next(kind for kind in main["memory"] if kind["kind"] == "anonymous")
    assert anonymous["dumped"] >= 4_000_000
    assert [(one["state"], one["local"]) for one in found["sockets"]] == [
        ("listening", "0.0.0.0:7007")
    ]
    manifest = found["manifest"]
    assert (manifest["name"], manifest["container_name"]) == ("one", "web")
    assert manifest["times"]["frozen"] < manifest["times"]["dumped"] < manifest["times"]["resumed"]
    assert manifest["size"] == sum(part["size"] for part in manifest["parts"])

    text = box("checkpoints", "inspect", "one")
    titles = re.findall(r"^(\S.*):$", text, re.MULTILINE)
    assert titles == [
        "Checkpoint",
        "Times",
        "Processes",
        "Memory",
        "Open files",
        "Sockets",
        "Pipes",
        "Largest parts",
    ]
    assert re.search(r"^  1 +0:0 .*init  /.ckpt/init$", text, re.MULTILINE)
    assert re.search(r"─ snags  /bin/snags$", text, re.MULTILINE)
    assert re.search(r"inet/tcp +listening +0\.0\.0\.0:7007", text)
    assert re.search(r"\b5 +reg +w +0 +\d* *\S* */tmp/note$", text, re.MULTILINE)


def test_inspect_lets_no_name_steer_the_terminal(box: Box) -> None:
    script = "printf x > \"$(printf '/tmp/a\\033[2Jb')\"; exec 5<\"$(printf '/tmp/a\\033[2Jb')\"; exec snags count"
    box.up("web", args=("sh", "-c", script))
    until(lambda: "ready" in box("logs", "web"))
    box("dump", "web", "--as", "one")
    text = box("checkpoints", "inspect", "one")
    assert "/tmp/a?[2Jb" in text
    assert "\033" not in text
    assert "\033" not in box("checkpoints", "inspect", "one", "--json")


def test_a_damaged_checkpoint_is_listed_as_such_and_does_not_hide_others(box: Box) -> None:
    dumped(box, "one", "two")
    manifest = box.root / "checkpoints/one/manifest.msgpack"
    manifest.write_bytes(manifest.read_bytes()[:100])
    listed = json.loads(box("checkpoints", "ls", "--json"))
    assert [(entry["name"], bool(entry["problem"])) for entry in listed] == [
        ("one", True),
        ("two", False),
    ]
    assert "damaged" in box("checkpoints", "ls")
    assert "manifest" in box.fails(21, "checkpoints", "inspect", "one")
    assert "manifest" in box.fails(21, "restore", "one")
    box("checkpoints", "prune", "--keep", "0")
    assert json.loads(box("checkpoints", "ls", "--json"))[0]["name"] == "one"
    box("checkpoints", "rm", "one")
    assert json.loads(box("checkpoints", "ls", "--json")) == []


# ---- verify


def test_verify_finds_a_flipped_byte_in_any_part(box: Box) -> None:
    dumped(box, "one")
    assert box("checkpoints", "verify") == "one: good\n"
    store = Store(str(box.root / "checkpoints"))
    directory = box.root / "checkpoints/one"
    random.seed(1)
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    assert len(files) > 20
    for path in files:
        label = str(path.relative_to(directory))
        before = path.read_bytes()
        if not before:
            continue
        offsets = {0, len(before) // 2, len(before) - 1, random.randrange(len(before))}
        for offset in offsets:
            damaged = bytearray(before)
            damaged[offset] ^= 1 << random.randrange(8)
            path.write_bytes(damaged)
            assert [problem.part for problem in store.verify("one")] == [label], (label, offset)
        path.write_bytes(before)
    assert store.verify("one") == []


def test_verify_finds_what_is_missing_cut_added_or_replaced_by_a_link(box: Box) -> None:
    dumped(box, "one")
    store = Store(str(box.root / "checkpoints"))
    pages = next((box.root / "checkpoints/one/criu").glob("pages-*.img"))
    label = f"criu/{pages.name}"
    before = pages.read_bytes()

    def found() -> list[str]:
        return [problem.part for problem in store.verify("one")]

    pages.write_bytes(before[:-1])
    assert found() == [label]
    pages.unlink()
    assert found() == [label]
    pages.symlink_to("/etc/passwd")
    assert found() == [label]
    pages.unlink()
    pages.write_bytes(before)
    extra = pages.with_name("extra.img")
    extra.write_bytes(b"")
    assert found() == ["criu/extra.img"]
    extra.unlink()
    assert found() == []


def test_a_damaged_checkpoint_is_not_restored(box: Box) -> None:
    dumped(box, "one")
    pages = max(
        (box.root / "checkpoints/one/criu").glob("pages-*.img"), key=lambda p: p.stat().st_size
    )
    damaged = bytearray(pages.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    pages.write_bytes(damaged)
    done = box.call("checkpoints", "verify", "one")
    assert done.returncode == 21
    assert done.stdout == f"one: damaged\n  criu/{pages.name}: its content has changed\n"
    found = json.loads(box.call("checkpoints", "verify", "one", "--json").stdout)
    assert found["one"][0]["part"] == f"criu/{pages.name}"
    assert pages.name in box.fails(21, "restore", "one")
    nothing_of(box)


# ---- names


def test_a_name_that_is_taken_is_refused_before_the_container_notices(box: Box) -> None:
    start(box, "web", "count")
    box("dump", "web", "--as", "one", "--leave-running")
    assert "there is a checkpoint of that name" in box.fails(11, "dump", "web", "--as", "one")
    assert box.one("web")["state"] == "running"
    box("checkpoints", "export", "one", str(box.root / "file"))
    assert "of that name" in box.fails(11, "checkpoints", "import", str(box.root / "file"))
    box("checkpoints", "import", "--as", "two", str(box.root / "file"))
    assert box("checkpoints", "verify") == "one: good\ntwo: good\n"
    assert "has that name" in box.fails(11, "restore", "one")
    box("restore", "one", "--as", "copy")
    runs_on(box, "copy")
    runs_on(box, "web")


@pytest.mark.parametrize(
    "name", ["", ".hidden", "-x", "a/b", "../up", "x" * 129, "a b", "ä", "a\nb"]
)
def test_bad_names_are_refused(box: Box, name: str) -> None:
    for words in (
        ("checkpoints", "verify", "--", name),
        ("checkpoints", "rm", "--", name),
        ("checkpoints", "inspect", "--", name),
    ):
        assert box.fails(3, *words).startswith("ckpt: ")
    if name:
        box.up("web")
        box.fails(3, "dump", "web", f"--as={name}")
        assert box.one("web")["state"] == "running"


# ---- removing


def test_what_is_being_read_is_not_removed(box: Box) -> None:
    dumped(box, "one", "two")
    with Store(str(box.root / "checkpoints")).open("one"):
        assert "in use" in box.fails(11, "checkpoints", "rm", "one")
        done = box("checkpoints", "prune", "--keep", "0")
        assert done == "one: kept, it is in use\ntwo\n"
    box("checkpoints", "rm", "one")


def test_removing_while_a_restore_reads_it_is_refused(box: Box) -> None:
    """The reader is an export into a pipe that nobody empties: it stands still for as long as we like."""
    start(box, "web", "memory", 8 << 20)
    box("dump", "web", "--as", "one")
    reader = box.popen("checkpoints", "export", "one", "-", stdout=subprocess.PIPE)
    assert reader.stdout is not None
    assert reader.stdout.read(8)
    assert "in use" in box.fails(11, "checkpoints", "rm", "one")
    reader.stdout.close()
    reader.wait(60)
    box("checkpoints", "rm", "one")


def test_prune_by_number_and_age(box: Box) -> None:
    dumped(box, "a1", "a2", "a3")
    assert box("checkpoints", "prune", "--keep", "1", "--dry-run") == "a1\na2\n"
    assert len(json.loads(box("checkpoints", "ls", "--json"))) == 3
    assert box("checkpoints", "prune", "--keep", "1", "--older-than", "1h") == ""
    assert box("checkpoints", "prune", "--keep", "1", "--container", "other") == ""
    found = json.loads(box("checkpoints", "prune", "--keep", "2", "--json"))
    assert [(one["name"], one["container"], one["kept"]) for one in found] == [("a1", "web", "")]
    assert box("checkpoints", "prune", "--older-than", "0s") == "a2\na3\n"
    assert "nothing says" in box.fails(3, "checkpoints", "prune")
    box.fails(3, "checkpoints", "prune", "--older-than", "soon")


# ---- carried elsewhere


def test_export_and_import_carry_everything_to_another_root(
    box: Box, tmp_path: Path, small_rootfs: Path
) -> None:
    start(box, "web", "hold", "/tmp/note", 100_000)
    box("dump", "web", "--as", "one")
    box("checkpoints", "export", "one", str(tmp_path / "one.ckpt"))
    assert sorted(os.listdir(tmp_path)) == ["one.ckpt"]
    there = box.root / "there"
    with opened(there, small_rootfs) as other:
        with (tmp_path / "one.ckpt").open("rb") as file:
            done = other.call("checkpoints", "import", "--as", "uno", "-", stdin=file)
        assert (done.returncode, done.stdout) == (0, "uno\n")
        assert other("checkpoints", "verify") == "uno: good\n"
        other("restore", "uno")
        runs_on(other, "web")
        assert other("exec", "web", "wc", "-c", "/tmp/note").split()[0] == "100000"
        # and on again, from there
        other("dump", "web", "--as", "dos")
        again = other.call("checkpoints", "export", "dos", "-", text=False)
    shutil.rmtree(there, ignore_errors=True)
    assert again.returncode == 0, again.stderr
    box("rm", "web")
    done = box.call("checkpoints", "import", "-", input=again.stdout, text=False)
    assert done.returncode == 0, done.stderr
    box("restore", "dos")
    runs_on(box, "web")


def test_an_export_into_a_file_appears_whole_or_not_at_all(box: Box, tmp_path: Path) -> None:
    dumped(box, "one")
    pages = max(
        (box.root / "checkpoints/one/criu").glob("pages-*.img"), key=lambda p: p.stat().st_size
    )
    pages.unlink()
    assert pages.name in box.fails(10, "checkpoints", "export", "one", str(tmp_path / "x"))
    assert os.listdir(tmp_path) == []
    box.fails(10, "checkpoints", "export", "none", str(tmp_path / "x"))
    box.fails(3, "checkpoints", "export", "one", str(tmp_path))
    box.fails(10, "checkpoints", "export", "one", str(tmp_path / "no/such/place"))
