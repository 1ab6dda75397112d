"""A container's files: where its root comes from, what is mounted into it, and who owns what."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
import zstandard

from tests import needs
from tests.e2e.box import Box, opened

pytestmark = needs.CONTAINERS


@pytest.mark.parametrize("kind", ["tar", "gz", "zst"])
def test_the_root_may_be_an_archive(box: Box, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"root.{kind}"
    plain = tmp_path / "root.tar"
    with tarfile.open(path if kind == "gz" else plain, "w:gz" if kind == "gz" else "w") as archive:
        archive.add(box.rootfs, arcname=".")
    if kind == "zst":
        path.write_bytes(zstandard.compress(plain.read_bytes()))
    said = box(
        "run", "--rm", "--network", "none", path, "--", "stat", "-c", "%U", "/home/web", "/bin"
    )
    assert said.split() == ["web", "root"]


def test_archives_that_are_none_or_reach_out_are_refused(box: Box, tmp_path: Path) -> None:
    bad = tmp_path / "bad.tar"
    bad.write_bytes(b"nonsense" * 1000)
    assert str(bad) in box.fails(3, "run", bad, "--", "true")
    with tarfile.open(bad, "w") as archive:
        member = tarfile.TarInfo("../../escaped")
        archive.addfile(member)
    assert "escaped" in box.fails(3, "run", bad, "--", "true")
    whole = tmp_path / "whole.tar"
    with tarfile.open(whole, "w") as archive:
        archive.add(box.rootfs, arcname=".")
    bad.write_bytes(whole.read_bytes()[:100_000])
    box.fails(3, "run", bad, "--", "true")
    assert box.names() == [] and not (tmp_path / "escaped").exists()


def test_what_a_container_writes_stays_its_own(box: Box) -> None:
    script = "echo hers > /var/f; chown web /var/f; rm /etc/group; ls -ln /var/f | cut -c1-30"
    assert " 33 " in box.sh(script)
    assert not (box.rootfs / "var/f").exists() and (box.rootfs / "etc/group").exists()


def test_owners_inside_are_those_of_the_image(box: Box) -> None:
    assert box.sh("stat -c %U:%G /home/web /bin /etc/passwd").split() == [
        "web:web",
        "root:root",
    ] + ["root:root"]


def test_a_read_only_root_cannot_be_written_but_a_tmpfs_in_it_can(box: Box) -> None:
    said = box.sh(
        "touch /var/x 2>&1 || echo ro; touch /tmp/x && echo rw; stat -c %a /tmp; df /tmp | tail -1",
        "--read-only", "--tmpfs", "/tmp:size=1m,mode=1770",
    )  # fmt: skip
    assert "Read-only" in said and {"ro", "rw", "1770"} <= set(said.split()) and "1024" in said


def test_tmpfs_is_writable_for_everybody_unless_said_otherwise(box: Box) -> None:
    assert (
        box.sh("touch /scratch/x && stat -c %a /scratch", "--tmpfs", "/scratch", "-u", "web")
        == "1777\n"
    )


def test_bound_directories_and_files_keep_their_owners_both_ways(box: Box, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "of-web").write_text("1")
    shutil.chown(folder / "of-web", 33, 33)
    single = tmp_path / "single.conf"
    single.write_text("setting\n")
    said = box.sh(
        "stat -c %u /data/of-web; cat /etc/single.conf; touch /data/new; chown 33 /data/new;"
        "echo changed >> /etc/single.conf",
        "-v", f"{folder}:/data", "-v", f"{single}:/etc/single.conf",
    )  # fmt: skip
    assert said.split() == ["33", "setting"]
    assert (folder / "new").stat().st_uid == 33 and (folder / "of-web").stat().st_uid == 33
    assert single.read_text() == "setting\nchanged\n"


def test_a_read_only_volume_cannot_be_written(box: Box, tmp_path: Path) -> None:
    said = box.sh("touch /data/x 2>&1 || echo refused", "-v", f"{tmp_path}:/data:ro")
    assert "Read-only" in said and "refused" in said and not (tmp_path / "x").exists()


def test_named_volumes_outlive_and_join_containers(box: Box) -> None:
    box.sh("echo kept > /home/web/f", "-v", "store:/home/web", "-u", "web")
    # A new volume takes owner and mode of what it covers: who isn't root can write.
    assert box.sh("cat /d/f; stat -c %u /d/f /d", "-v", "store:/d:ro").split() == [
        "kept",
        "33",
        "33",
    ]
    path = box.root / "volumes/store/f"
    assert path.read_text() == "kept\n" and path.stat().st_uid == 33
    box.up("c", "-v", "store:/d")
    box("rm", "-f", "c")
    assert path.exists()
    assert "volume name" in box.fails(3, "run", "-v", ".x:/d", box.rootfs, "--", "true")


def test_what_a_container_cannot_reach_or_own_is_refused_by_name(box: Box, tmp_path: Path) -> None:
    said = box.fails(13, "run", "-v", "/sys:/x", box.rootfs, "--", "true")
    assert "/sys is on sysfs, which can't show its files with a container's owners" in said
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    words = ("--root", closed / "root", "run", "--network", "none", box.rootfs, "--", "true")
    said = box.fails(13, *words)
    assert "other users can't pass through" in said and "chmod o+x" in said
    assert not list((closed / "root/containers").iterdir())


def test_symbolic_links_of_the_image_do_not_lead_mounts_to_the_host(
    box: Box, tmp_path: Path
) -> None:
    root = tmp_path / "rootfs"
    shutil.copytree(box.rootfs, root, symlinks=True)
    victim = tmp_path / "victim"
    victim.mkdir()
    (root / "trap").symlink_to(victim)
    (root / "up").symlink_to("../../../../../../" + str(victim))
    box.rootfs = root
    box.sh("touch /trap/x /up/y; ls /trap", "--tmpfs", "/trap", "-v", f"{root}/etc:/up/etc")
    assert list(victim.iterdir()) == []


def test_the_usual_devices_and_no_others(box: Box) -> None:
    said = box.sh(
        "ls /dev; echo x > /dev/null; head -c 3 /dev/zero | wc -c; head -c 3 /dev/urandom | wc -c;"
        "readlink /dev/stdout; mknod /tmp/d b 8 0 2>&1 || echo refused"
    )
    lines = said.splitlines()
    assert {"null", "zero", "full", "random", "urandom", "tty", "pts", "shm", "mqueue"} <= set(
        lines
    )
    assert not {"sda", "vda", "mem", "kmem", "kvm"} & set(lines)
    assert "/proc/self/fd/1" in lines and "refused" in lines and lines.count("3") == 2


def test_a_device_can_be_written_by_who_is_not_root(box: Box) -> None:
    assert box.sh("echo x > /dev/null && echo ok; echo y > /dev/stdout", "-u", "web") == "ok\ny\n"


def test_files_of_ids_that_a_container_cannot_have_are_named(box: Box, tmp_path: Path) -> None:
    root = tmp_path / "rootfs"
    shutil.copytree(box.rootfs, root, symlinks=True)
    os.chown(root / "etc", 100_000, 100_000)
    said = box.fails(3, "run", root, "--", "true")
    assert "/etc belongs to user 100000" in said and "--userns host" in said
    assert (
        box("run", "--rm", "--userns", "host", "--network", "none", root, "--", "echo", "ok")
        == "ok\n"
    )


def test_nothing_is_mounted_on_the_host(box: Box, tmp_path: Path) -> None:
    box.up("c", "-v", f"{tmp_path}:/data", "--tmpfs", "/t")
    assert str(box.root) not in Path("/proc/self/mountinfo").read_text()


def test_the_same_root_is_imported_once(box: Box) -> None:
    box.sh("true")
    before = sorted(os.listdir(box.root / "layers"))
    box.sh("true")
    assert sorted(os.listdir(box.root / "layers")) == before


def test_a_change_of_the_directory_makes_another_layer(box: Box, tmp_path: Path) -> None:
    root = tmp_path / "rootfs"
    subprocess.run(["cp", "-a", box.rootfs, root], check=True)
    box.rootfs = root
    assert box.sh("cat /etc/new 2>/dev/null || echo none") == "none\n"
    (root / "etc/new").write_text("new\n")
    assert box.sh("cat /etc/new") == "new\n"


@needs.criu
@pytest.mark.parametrize("there", ["relatime", "nosuid,nodev,strictatime"])
def test_how_the_hosts_disk_is_mounted_doesnt_stick_to_a_container(
    ckpt_root: Path, small_rootfs: Path, there: str
) -> None:
    """Restored on another host, it finds the options of that one, and could not change them any more."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "noatime,mode=711", "x", ckpt_root], check=True)
    try:
        with opened(ckpt_root, small_rootfs) as box:
            box(
                "run", "-d", "--name", "n", "--network", "none", small_rootfs, "--", "sleep", "1000"
            )
            options = box("exec", "n", "--", "grep", " /etc/hosts ", "/proc/self/mountinfo")
            assert "relatime" in options and "noatime" not in options
            box("dump", "n", "--as", "kept")
            box("rm", "n")
            subprocess.run(["mount", "-o", f"remount,{there}", ckpt_root], check=True)
            box("restore", "kept")
            assert "sleep" in box("exec", "n", "--", "ps")
    finally:
        subprocess.run(["umount", "-l", ckpt_root], check=True)
