"""One writer a folder, or an error that says why it cannot be promised."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from gradlab import store
from gradlab.store import check_writable, node_local_locks, writer_lock

MOUNTS = """\
30 22 0:40 / /home rw,relatime shared:2 - nfs4 server:/home rw,vers=4.2,hard,local_lock=none,addr=10.0.0.1
31 30 0:41 / /home/old rw,relatime shared:3 - nfs server:/old rw,vers=3,nolock,local_lock=all,addr=10.0.0.1
32 22 0:42 / /my\\040scratch rw,relatime shared:4 - lustre mgs@tcp:/scratch rw,localflock,lazystatfs
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
33 22 0:43 / /over rw - nfs server:/a rw,local_lock=all
34 33 0:44 / /over rw - nfs4 server:/b rw,local_lock=none
"""


@pytest.mark.parametrize(
    "path,expected",
    [
        ("/srv/work", None),
        ("/home/me/work", None),
        ("/home/older/work", None),
        ("/home/old/work", "local_lock=all"),
        ("/my scratch/work", "localflock"),
        ("/over/work", None),
    ],
)
def test_what_a_mount_says_of_its_locks(path, expected):
    assert node_local_locks(Path(path), MOUNTS) == expected


def test_this_machines_mounts_can_be_read(tmp_path):
    with open("/proc/self/mountinfo") as mounts:
        assert node_local_locks(tmp_path, mounts.read()) is None


def test_locks_of_one_node_stop_a_cluster_job_only(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "node_local_locks", lambda path, mounts: "local_lock=all")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with writer_lock(tmp_path):
        pass
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with (
        pytest.raises(RuntimeError, match=r"expected locks that all nodes see; found it mounted with local_lock=all"),
        writer_lock(tmp_path),
    ):
        pass


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def flock(handle, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with (
        pytest.raises(RuntimeError, match=r"expected a file system with locks; found: .*No locks available.*docs/"),
        writer_lock(tmp_path),
    ):
        pass


def test_a_folder_that_can_not_be_written_is_named_before_anything_starts(tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    check_writable(tmp_path / "results/mine/runs")
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / "results")
    check_writable(tmp_path / "work/mine")
    with pytest.raises(
        ValueError, match=r"mine/runs: expected a folder that can be written; found .*/results read-only"
    ):
        check_writable(tmp_path / "results/mine/runs")
