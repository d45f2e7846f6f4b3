"""Memory that this process may still take: the machine's, and what cgroups leave of it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from dotscli.engine.available import MAX_NBYTES, Available, available_memory, within_cgroups

GIB = 1 << 30
MACHINE = Available(64 * GIB, 128 * GIB)
V1 = Path("/sys/fs/cgroup/memory")
V1_MOUNT = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


class Tree:
    """A made-up /proc and /sys."""

    def __init__(self, root: Path, cgroup: str, mountinfo: str) -> None:
        self.root = root
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/cgroup").write_text(cgroup)
        (root / "proc/self/mountinfo").write_text(mountinfo)

    def put(self, folder: str, **files: object) -> None:
        place = self.root / folder.lstrip("/")
        place.mkdir(parents=True, exist_ok=True)
        for name, value in files.items():
            (place / name.replace("__", ".")).write_text(f"{value}")

    def v1(self, folder: str, limit: int, usage: int, stat: str = "") -> None:
        self.put(
            folder, memory__limit_in_bytes=limit, memory__usage_in_bytes=usage, memory__stat=stat
        )

    def v2(
        self, folder: str, most: object, usage: int, stat: str = "", high: object = "max"
    ) -> None:
        self.put(
            folder, memory__max=most, memory__high=high, memory__current=usage, memory__stat=stat
        )

    @property
    def found(self) -> Available:
        return within_cgroups(MACHINE, self.root)


def test_a_limit_of_cgroup_v1_less_what_is_used_and_cannot_be_reclaimed(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "4:memory:/job\n0::/\n", V1_MOUNT)
    stat = (
        "inactive_file 7\ntotal_inactive_file 2147483648\ntotal_active_file 1073741824\n"
        "total_dirty 536870912\ntotal_writeback 536870912\n"
    )
    tree.v1("/sys/fs/cgroup/memory/job", 12 * GIB, 5 * GIB, stat)
    tree.v1("/sys/fs/cgroup/memory", 9223372036854771712, 100 * GIB)
    assert tree.found == Available((12 - 5 + 3 - 1) * GIB, 12 * GIB, "cgroup /job")


def test_a_limit_of_cgroup_v2_with_slab_and_what_is_throttled_above(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "0::/user.slice/run\n", V2_MOUNT)
    stat = "inactive_file 1073741824\nactive_file 0\nslab_reclaimable 1073741824\nfile_dirty 0\n"
    tree.v2("/sys/fs/cgroup/user.slice/run", 12 * GIB, 4 * GIB, stat)
    assert tree.found == Available(10 * GIB, 12 * GIB, "cgroup /user.slice/run")
    tree.v2("/sys/fs/cgroup/user.slice/run", 12 * GIB, 4 * GIB, stat, high=8 * GIB)
    assert tree.found == Available(6 * GIB, 8 * GIB, "cgroup /user.slice/run")


def test_the_tightest_level_holds_up_to_the_root(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "0::/a/b/c\n", V2_MOUNT)
    tree.v2("/sys/fs/cgroup/a/b/c", "max", GIB)
    tree.v2("/sys/fs/cgroup/a/b", 40 * GIB, 10 * GIB)
    tree.v2("/sys/fs/cgroup/a", 20 * GIB, 15 * GIB)
    assert tree.found == Available(5 * GIB, 20 * GIB, "cgroup /a")
    tree.v2("/sys/fs/cgroup/a/b/c", 2 * GIB, GIB)
    assert tree.found == Available(1 * GIB, 2 * GIB, "cgroup /a/b/c")


def test_a_container_sees_its_own_cgroup_as_the_root(tmp_path: Path) -> None:
    mount = "35 31 0:32 /docker/af0 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
    tree = Tree(tmp_path, "4:cpu,memory:/docker/af0\n", mount.replace("rw,memory", "rw,cpu,memory"))
    tree.v1("/sys/fs/cgroup/memory", 3 * GIB, GIB)
    assert tree.found == Available(2 * GIB, 3 * GIB, "cgroup /")


@pytest.mark.parametrize("path", ["/../../host", "/elsewhere", "/a/../b"])
def test_a_cgroup_outside_of_the_mounted_one_leaves_its_root(tmp_path: Path, path: str) -> None:
    mount = V2_MOUNT.replace(" / ", " /inner ", 1)
    tree = Tree(tmp_path, f"0::{path}\n", mount)
    tree.v2("/sys/fs/cgroup", 3 * GIB, GIB)
    assert tree.found.nbytes == 2 * GIB


def test_a_mount_point_with_a_space(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "0::/\n", V2_MOUNT.replace("/sys/fs/cgroup ", "/my\\040groups "))
    tree.v2("/my groups", 3 * GIB, GIB)
    assert tree.found.nbytes == 2 * GIB


def test_both_versions_side_by_side(tmp_path: Path) -> None:
    second = "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    tree = Tree(tmp_path, "4:memory:/job\n0::/\n", V1_MOUNT + second)
    tree.put("/sys/fs/cgroup/unified", cgroup__procs="1")
    tree.v1("/sys/fs/cgroup/memory/job", 3 * GIB, GIB)
    assert tree.found.limited_by == "cgroup /job"


@pytest.mark.parametrize("limit", ["", "-1", "none", "1e9", "9" * 30, str(1 << 62), "٣", "12 GiB"])
def test_limits_that_cannot_be_are_none(tmp_path: Path, limit: str) -> None:
    tree = Tree(tmp_path, "0::/\n", V2_MOUNT)
    tree.v2("/sys/fs/cgroup", limit, GIB, high=limit)
    assert tree.found == MACHINE


@pytest.mark.parametrize(
    ("cgroup", "mountinfo"),
    [
        ("", ""),
        ("\n::\n:\nx", V2_MOUNT),
        ("0::/\n", "\n - \n - cgroup2\n1 2 3 - cgroup2 c rw\n"),
        ("4:memory:/job", "a b c d\\400 e - cgroup c memory\n"),
        ("0::" + "/x" * 5000, V2_MOUNT),
        ("0::/" + "x" * 5000, V2_MOUNT),
        ("0::/a\0b", V2_MOUNT),
    ],
)
def test_files_that_make_no_sense_limit_nothing(
    tmp_path: Path, cgroup: str, mountinfo: str
) -> None:
    assert Tree(tmp_path, cgroup, mountinfo).found == MACHINE


def test_more_used_than_allowed_leaves_nothing_and_cache_never_more_than_the_limit(
    tmp_path: Path,
) -> None:
    tree = Tree(tmp_path, "0::/\n", V2_MOUNT)
    tree.v2("/sys/fs/cgroup", 2 * GIB, 3 * GIB)
    assert tree.found == Available(0, 2 * GIB, "cgroup /")
    tree.v2("/sys/fs/cgroup", 2 * GIB, GIB, f"inactive_file {900 * GIB}\n")
    assert tree.found.nbytes == 2 * GIB
    tree.v2("/sys/fs/cgroup", 2 * GIB, GIB, f"file_dirty {900 * GIB}\n")
    assert tree.found.nbytes == GIB


def test_a_loose_limit_changes_nothing(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "0::/\n", V2_MOUNT)
    tree.v2("/sys/fs/cgroup", 100 * GIB, GIB)
    assert tree.found == MACHINE


def test_a_file_that_never_ends_is_read_to_a_bound(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "0::/\n", "x" * (2 * MAX_NBYTES) + "\n" + V2_MOUNT)
    tree.v2("/sys/fs/cgroup", GIB, 0)
    assert tree.found == MACHINE


def test_this_machine_has_what_psutil_says_or_less() -> None:
    found, machine = available_memory(), psutil.virtual_memory()
    assert 0 < found.nbytes <= machine.total
    assert found.nbytes <= machine.available + GIB
    assert found.total <= machine.total


CHILD = """
    import os, sys
    from pathlib import Path
    from dotscli.engine.available import available_memory
    Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
    before = available_memory()
    taken = bytearray(os.urandom(1 << 20)) * 64
    after = available_memory()
    print(before.limited_by, before.total, before.nbytes, after.nbytes)
    with open(sys.argv[2], "wb") as file:
        file.write(taken)
        os.fsync(file.fileno())
    print(available_memory().nbytes)
"""


def _writable_v1() -> bool:
    return sys.platform == "linux" and os.getuid() == 0 and os.access(V1 / "cgroup.procs", os.W_OK)


@pytest.mark.skipif(not _writable_v1(), reason="needs root and a writable cgroup v1 for memory")
def test_under_a_real_limit_where_root_may_set_one_in_cgroup_v1(tmp_path: Path) -> None:
    ours = V1 / f"dots-test-{os.getpid()}"
    ours.mkdir()
    try:
        (ours / "memory.limit_in_bytes").write_text(str(GIB // 2))
        command = [sys.executable, "-c", textwrap.dedent(CHILD), str(ours), str(tmp_path / "file")]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    finally:
        for _ in range(100):
            try:
                ours.rmdir()
                break
            except OSError:  # the child's memory is being given back
                time.sleep(0.05)
    first, second = done.stdout.splitlines()
    *name, total, before, after = first.split()
    assert " ".join(name) == f"cgroup /{ours.name}"
    assert int(total) == GIB // 2
    assert GIB // 4 < int(before) <= GIB // 2
    assert 60 << 20 < int(before) - int(after) < 90 << 20  # what the process took
    assert (
        int(after) - int(second) < 16 << 20
    )  # written and synced: page cache that can be given up
