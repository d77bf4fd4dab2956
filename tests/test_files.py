"""Writing files: whole or not at all, and one line when the disk says no."""

import ast
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from thesis_repro import paths
from thesis_repro.files import BadInput, atomic_json, atomic_write, previous, sha256

WRITER = """
import sys
from thesis_repro import paths
from thesis_repro.files import atomic_write
print("ready", flush=True)
while True:
    for letter in "ab":
        atomic_write(sys.argv[1], letter * 3_000_000)
"""


def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    target = tmp_path / "checkpoint"
    atomic_write(target, "a" * 3_000_000)
    rng = random.Random(0)
    for _ in range(10):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, target], stdout=subprocess.PIPE)
        writer.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.05))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        content = target.read_bytes()
        assert len(content) == 3_000_000 and len(set(content)) == 1


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("number", "says"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "permission denied")]
)
def test_a_refused_write_keeps_the_old_file_and_leaves_no_other(
    tmp_path, monkeypatch, call, number, says
):
    target = atomic_write(tmp_path / "table.csv", "old")

    def refuse(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(BadInput) as error:
        atomic_write(target, "new")
    monkeypatch.undo()
    assert (
        str(target) in str(error.value)
        and says in str(error.value)
        and "\n" not in str(error.value)
    )
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"] and target.read_text() == "old"


def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    root = os.geteuid() == 0  # who may write anywhere, so another user tries
    os.seteuid(65534 if root else os.geteuid())
    try:
        with pytest.raises(BadInput, match="permission denied"):
            atomic_write(tmp_path / "sub" / "file", "x")
    finally:
        os.seteuid(0 if root else os.geteuid())
        tmp_path.chmod(0o700)
    assert not list(tmp_path.iterdir())


def test_a_name_of_the_longest_length_is_allowed_and_a_longer_one_refused(tmp_path):
    assert atomic_write(tmp_path / ("x" * 255), b"1").read_bytes() == b"1"
    with pytest.raises(BadInput, match="too long"):
        atomic_write(tmp_path / ("x" * 256), b"1")


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        mode = atomic_write(tmp_path / "shared", "x").stat().st_mode & 0o777
    finally:
        os.umask(before)
    assert mode == 0o640


def test_json_is_strict_and_keeps_every_digit(tmp_path):
    value = {
        "loss": [1 / 3, float("inf"), float("nan")],
        "λ": np.float32(0.5),
        "n": np.int64(3),
        "where": tmp_path,
    }

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    read = json.loads(
        atomic_json(tmp_path / "x.json", value).read_text(encoding="utf-8"), parse_constant=refuse
    )
    assert read == {"loss": [1 / 3, None, None], "λ": 0.5, "n": 3, "where": str(tmp_path)}


def in_the_locales_encoding(module) -> list[str]:
    "The lines of a module that read or write a file as text and do not say in which encoding."
    found = []
    for call in (
        n for n in ast.walk(ast.parse(module.read_text("utf-8"))) if isinstance(n, ast.Call)
    ):
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        said = [k.arg for k in call.keywords]
        words = [a.value for a in call.args if isinstance(a, ast.Constant)]
        text = name == "write_text" or (name == "read_text" and "utf-8" not in words)
        if name == "open" and isinstance(call.func, ast.Name):
            text = not any("b" in w for w in words[-1:] if isinstance(w, str))
        if text and "encoding" not in said:
            found.append(f"{module.name}:{call.lineno}")
    return found


def test_no_file_is_read_or_written_in_the_encoding_of_a_locale(tmp_path):
    "What one machine writes, a machine with another locale reads."
    modules = sorted(paths.root().glob("thesis_repro/*.py"))
    assert len(modules) > 100 and [w for m in modules for w in in_the_locales_encoding(m)] == []
    own = tmp_path / "own.py"
    own.write_text("p.read_text()\np.write_text(x)\nopen(p)\nopen(p, 'rb')\n", "utf-8")
    assert in_the_locales_encoding(own) == ["own.py:1", "own.py:2", "own.py:3"]


def test_checksum_of_a_file_that_is_not_there(tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        sha256(tmp_path / "absent")


def test_checksums_of_a_file_and_of_bytes_agree(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == sha256(content) == sha256(memoryview(content))


def test_the_file_before_is_kept_when_asked(tmp_path):
    file = tmp_path / "weights"
    for content in ("one", "two", "three"):
        atomic_write(file, content, keep=True)
    assert (file.read_text(), previous(file).read_text()) == ("three", "two")
    atomic_write(file, "four")
    assert (file.read_text(), previous(file).read_text()) == ("four", "two")
