"Files from elsewhere: broken connections, wrong bytes, hostile names, bombs, and killed processes."

import io
import os
import signal
import stat
import subprocess
import sys
import time
import tracemalloc
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from processes import gone
from samples import md5, noise, refused

from thesis_repro import archives
from thesis_repro.files import BadInput, Unwritable, sha256
from thesis_repro.images import Source

# Downloads

CONTENT = noise(1_000_000).tobytes()


def test_download_resumes_a_part(server, tmp_path):
    server.files["a.bin"], path = CONTENT, tmp_path / "sub" / "a.bin"
    path.parent.mkdir()
    (path.parent / "a.bin.part").write_bytes(CONTENT[:300_000])
    archives.download(server.url("a.bin"), path, md5(CONTENT))
    assert path.read_bytes() == CONTENT and server.asked == ["bytes=300000-"]
    assert [p.name for p in path.parent.iterdir()] == ["a.bin"]
    archives.download(server.url("a.bin"), path, md5(CONTENT))
    assert len(server.asked) == 1  # whole: not asked for again


def test_download_survives_lost_connections(server, tmp_path):
    server.files["a.bin"], server.patience = CONTENT, 150_000
    archives.download(server.url("a.bin"), tmp_path / "a.bin", md5(CONTENT))
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert server.asked == [None] + [f"bytes={150_000 * i}-" for i in range(1, 7)]


def test_download_from_a_server_without_ranges(server, tmp_path):
    server.files["a.bin"], server.ranges = CONTENT, False
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:10])
    archives.download(server.url("a.bin"), tmp_path / "a.bin", md5(CONTENT))
    assert (tmp_path / "a.bin").read_bytes() == CONTENT and server.asked == ["bytes=10-"]


WRONG_PARTS = [b"something else", CONTENT + b"too long", CONTENT, CONTENT[:-1] + b"?"]


@pytest.mark.parametrize("part", WRONG_PARTS)
def test_download_recovers_from_a_wrong_part(server, tmp_path, part):
    server.files["a.bin"] = CONTENT
    (tmp_path / "a.bin.part").write_bytes(part)
    archives.download(server.url("a.bin"), tmp_path / "a.bin", md5(CONTENT))
    assert (tmp_path / "a.bin").read_bytes() == CONTENT and not (tmp_path / "a.bin.part").exists()


def test_a_truncated_file_is_completed(server, tmp_path):
    server.files["a.bin"] = CONTENT
    (tmp_path / "a.bin").write_bytes(CONTENT[:900_000])
    archives.download(server.url("a.bin"), tmp_path / "a.bin", md5(CONTENT))
    assert (tmp_path / "a.bin").read_bytes() == CONTENT and server.asked == ["bytes=900000-"]


def test_a_download_that_cannot_succeed(server, tmp_path):
    path = tmp_path / "a.bin"

    def attempt():
        archives.download(server.url("a.bin"), path, md5(CONTENT))

    refused(attempt, "cannot be downloaded", "404", str(path))
    assert len(server.asked) == 1  # a refusal is not repeated
    server.files["a.bin"] = CONTENT[:-1] + b"?"
    refused(attempt, "another MD5", str(path))
    server.patience = 0
    refused(attempt, "the connection was lost")
    assert not path.exists()
    server.shutdown()
    server.server_close()
    refused(attempt, "cannot be downloaded", "refused")


# Checksums


def test_a_digest_is_computed_once_and_again_when_the_file_changed(tmp_path, monkeypatch):
    path, computed = tmp_path / "a", []
    monkeypatch.setattr(archives, "sha256", lambda p: computed.append(p) or sha256(p))
    path.write_bytes(b"seven")
    assert archives.digest(path) == archives.digest(path) == sha256(b"seven")
    assert len(computed) == 1
    before = path.stat()
    time.sleep(0.05)
    path.write_bytes(b"eight")  # as long, and with the same time of modification
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert archives.digest(path) == sha256(b"eight")
    refused(lambda: archives.digest(tmp_path / "none"), "none: cannot be read")
    refused(lambda: archives.digest(tmp_path), "cannot be read")


# Zip files


def zipped(path, members):
    with zipfile.ZipFile(path, "w") as z:
        for name, content in members.items():
            z.writestr(name, content)


def unpack(folder, **words):
    archives.unpack(folder / "set.zip", folder / "set", **words)


def test_unpacking_replaces_what_was_there(tmp_path):
    members = {"set/": b"", "set/a/b.txt": b"b", "set/a/c/": b"", "set/test/d.txt": b"d"}
    zipped(tmp_path / "set.zip", members)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "old.txt").write_text("old")
    unpack(tmp_path, without="test")
    found = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*"))
    assert found == ["set", "set.zip", "set/a", "set/a/b.txt", "set/a/c"]


HOSTILE = ["../evil", "/tmp/evil", "other/evil", "set/../../evil", "..\\evil", "evil\x1b[2J\n"]


@pytest.mark.parametrize("member", HOSTILE)
def test_members_that_reach_outside_are_refused(tmp_path, member):
    zipped(tmp_path / "set.zip", {"set/a.txt": b"a", member: b"evil"})
    refused(lambda: unpack(tmp_path), "set.zip: has a member that does not belong there")
    assert [p.name for p in tmp_path.rglob("*")] == ["set.zip"]


def test_links_are_refused(tmp_path):
    link = zipfile.ZipInfo("set/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as z:
        z.writestr(link, "/etc/passwd")
    refused(lambda: unpack(tmp_path), "does not belong there")
    assert [p.name for p in tmp_path.rglob("*")] == ["set.zip"]


def test_a_damaged_zip_file_leaves_what_was_there(tmp_path):
    zipped(tmp_path / "set.zip", {f"set/{i}": noise(1000, seed=i).tobytes() for i in range(20)})
    unpack(tmp_path)
    content = bytearray((tmp_path / "set.zip").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "set.zip").write_bytes(content)
    refused(lambda: unpack(tmp_path), "set.zip: cannot be unpacked")
    assert len([*(tmp_path / "set").iterdir()]) == 20 and not [*tmp_path.glob(".*")]


# Arrays in an archive


def npz(path, **arrays):
    np.savez_compressed(path, **arrays)
    return zipfile.ZipFile(path)


def test_heads_are_read_without_the_array(tmp_path):
    big = np.zeros((200, 1000, 1000), np.uint8)
    fortran = np.asfortranarray(np.arange(12).reshape(3, 4))
    with npz(tmp_path / "a.npz", big=big, fortran=fortran) as z:
        del big
        tracemalloc.start()
        assert archives.array_head(z, "big") == ((200, 1000, 1000), np.uint8)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2_000_000
        assert archives.array_head(z, "fortran") == ((3, 4), np.int64)
        assert np.array_equal(archives.array(z, "fortran"), fortran)
        assert np.array_equal(archives.array(z, "fortran", tmp_path), fortran)
        refused(lambda: archives.array_head(z, "none"), "a.npz: has no array none", "big.npy")


def test_a_pickle_is_refused(tmp_path):
    with npz(tmp_path / "a.npz", a=np.array([{}] * 3, object)) as z:
        refused(lambda: archives.array_head(z, "a"), "a.npz: a holds Python objects (a pickle)")
        with pytest.raises(ValueError):
            archives.array(z, "a")


def test_a_head_that_lies_is_refused(tmp_path):
    "It claims three terabytes, and one claims to be smaller than it is."
    for shape in ((10**6, 1000, 1000, 3), (1, 2), (-1, -6)):
        file = io.BytesIO()
        head = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, head)
        zipped(tmp_path / "a.npz", {"a.npy": file.getvalue() + bytes(7)})
        with zipfile.ZipFile(tmp_path / "a.npz") as z:
            refused(lambda z=z: archives.array_head(z, "a"), "damaged: a has 7 bytes")


HEADS = {
    "code": "__import__('os').system('touch OWNED')",
    "deep": "[" * 9000,
    "long": "x" * 20_000,
    "open": "{'descr': '|u1', 'fortran_order': False, 'shape': (1,",
    "infinite": "{'descr': '|u1', 'fortran_order': False, 'shape': (1e400,)}",
    "mixed keys": "{'descr': '|u1', 'fortran_order': False, b'shape': (1,)}",
    "text": "{'descr': '|u1', 'fortran_order': False, 'shape': 'many'}",
}


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0), (9, 9)])
@pytest.mark.parametrize("text", HEADS)
def test_a_hostile_head_is_one_line(tmp_path, monkeypatch, text, version):
    monkeypatch.chdir(tmp_path)
    size = len(HEADS[text]).to_bytes(2 if version == (1, 0) else 4, "little")
    head = b"\x93NUMPY" + bytes(version) + size + HEADS[text].encode()
    zipped(tmp_path / "a.npz", {"a.npy": head})
    with zipfile.ZipFile(tmp_path / "a.npz") as z:
        refused(lambda: archives.array_head(z, "a"), "a.npz: damaged: the head of a")
    assert not (tmp_path / "OWNED").exists()


def test_a_bomb_is_not_expanded(tmp_path, monkeypatch):
    "200 MB in 200 kB: refused by memory and by disk, and nothing of it is expanded."
    with npz(tmp_path / "a.npz", a=np.zeros((200, 1000, 1000), np.uint8)) as z:
        memory = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 20_000}
        disk = SimpleNamespace(free=50_000_000)
        monkeypatch.setattr(archives.os, "sysconf", memory.__getitem__)
        monkeypatch.setattr(archives.shutil, "disk_usage", lambda folder: disk)
        tracemalloc.start()
        refused(lambda: archives.array(z, "a"), "a.npz: a takes 0.2 GB", "memory", "stream = yes")
        refused(lambda: archives.array(z, "a", tmp_path), "0.2 GB", "THESIS_REPRO_DATA")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2_000_000 and [p.name for p in tmp_path.iterdir()] == ["a.npz"]
        monkeypatch.undo()
        assert archives.array(z, "a").nbytes == 200_000_000


def test_a_full_disk_is_not_called_a_damaged_archive(tmp_path):
    "A folder that cannot take the array is at fault, not the archive."
    with npz(tmp_path / "a.npz", a=noise(3, 3)) as z:
        (tmp_path / "a.npy").mkdir()
        with pytest.raises(Unwritable, match="cannot be written"):
            archives.array(z, "a", tmp_path)


# Folders that are complete or not there


def source(folder=None, seed=0):
    x, x_test = noise(40, 8, 8, 3, seed=seed), noise(10, 8, 8, 3, seed=seed + 1)
    return Source(x, np.arange(40) % 4, x_test, np.arange(10) % 4, 4, flip=False, crop=1)


def never(folder):
    raise AssertionError("it was made again")


def test_what_is_kept_is_what_was_made(tmp_path):
    folder = tmp_path / "data" / "set" / "decoded"
    made, found = archives.kept(folder, source), archives.kept(folder, never)
    for k in ("x_train", "y_train", "x_test", "y_test"):
        assert np.array_equal(getattr(made, k), getattr(source(), k))
        assert np.array_equal(getattr(found, k), getattr(source(), k))
    assert isinstance(found.x_train, np.memmap) and found.counts.sum() == 40 * 8 * 8 * 3
    assert (found.classes, found.flip, found.crop) == (4, False, 1)
    assert sorted(p.name for p in folder.parent.iterdir()) == ["decoded"]


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


def zeroed(file):
    file.write_bytes(file.read_bytes()[:128] + bytes(file.stat().st_size - 128))


def flipped(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def removed(file):
    file.unlink()


@pytest.mark.parametrize("damage", [cut, zeroed, flipped, removed])
@pytest.mark.parametrize("name", ["x_train.npy", "x_test.npy", "labels.npz"])
def test_damage_is_noticed_and_mended(tmp_path, name, damage):
    folder = tmp_path / "decoded"
    archives.kept(folder, source)
    time.sleep(0.01)
    damage(folder / name)
    with pytest.raises(archives.UNREADABLE):
        archives.opened(folder)
    with pytest.warns(UserWarning, match=r"decoded: .*: it is made again"):
        again = archives.kept(folder, source)
    assert np.array_equal(again.x_train, source().x_train)
    assert np.array_equal(again.x_test, source().x_test)
    archives.kept(folder, never)


def test_a_failure_leaves_nothing(tmp_path):
    def fails(folder):
        np.save(folder / "x_train.npy", noise(3))
        raise BadInput("no such image")

    refused(lambda: archives.kept(tmp_path / "data" / "set" / "decoded", fails), "no such image")
    assert not [*tmp_path.iterdir()]


def test_a_folder_that_cannot_be_written(tmp_path):
    def full(folder):
        raise OSError(28, "No space left on device")

    (tmp_path / "file").write_text("")
    for folder, make in ((tmp_path / "file" / "set", source), (tmp_path / "set", full)):
        with pytest.raises(Unwritable, match=r"cannot be written: .*THESIS_REPRO_DATA"):
            archives.kept(folder / "decoded", make)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


SLOW = """
import sys, time
from pathlib import Path
import numpy as np
from thesis_repro.archives import kept
from thesis_repro.images import Source

def make(folder):
    x, y = np.zeros((4, 8, 8, 3), np.uint8), np.arange(4)
    np.save(folder / "x_train.npy", x)
    with open(sys.argv[2], "a") as log:
        log.write("made\\n")
    print("making", flush=True)
    time.sleep(float(sys.argv[3]))
    return Source(x, y, x, y, 4)

print("begun", flush=True)
assert kept(Path(sys.argv[1]), make).classes == 4
"""


def started(folder, log, seconds):
    words = [sys.executable, "-c", SLOW, folder, log, str(seconds)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n"
    return process


def test_a_killed_process_is_tidied_up_after(tmp_path):
    folder, log = tmp_path / "data" / "decoded", tmp_path / "log"
    killed = started(folder, log, 600)
    assert killed.stdout.readline() == "making\n"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert [*folder.parent.glob(".*.tmp/x_train.npy")]  # it had begun
    (folder.parent / ".decoded-1a2b3c4d.tmp").mkdir()  # as version 0.1 left it
    archives.kept(folder, source)
    assert [p.name for p in folder.parent.iterdir()] == ["decoded"]


def test_one_process_makes_it_and_the_others_wait(tmp_path):
    "Of three one is killed at work; then one of the others makes it, and the third finds it."
    folder, log = tmp_path / "data" / "decoded", tmp_path / "log"
    first = started(folder, log, 600)
    assert first.stdout.readline() == "making\n"
    others = [started(folder, log, 0.5) for _ in range(2)]
    time.sleep(0.5)
    assert log.read_text() == "made\n" and not any(p.poll() for p in others)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert gone(first.pid) and [p.wait(60) for p in others] == [0, 0]
    assert log.read_text() == "made\nmade\n"
    assert [p.name for p in folder.parent.iterdir()] == ["decoded"]
    for process in (first, *others):
        process.stdout.close()


def test_no_lock_no_work(tmp_path, monkeypatch):
    "A file system without locks is named, and nothing is unpacked."

    def refuses(file, how):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(archives.fcntl, "flock", refuses)
    with pytest.raises(
        Unwritable, match=r"set: its file system has no locks \(no locks available\)"
    ):
        archives.kept(tmp_path / "set" / "decoded", source)
    assert not [*tmp_path.glob("*/*.tmp")]
