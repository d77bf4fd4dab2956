"""What tests of outputs/reference share: which measurements are read, which places a file names."""

from pathlib import Path

from thesis_repro import measures


def noting(patch) -> set[str]:
    "The names of the files of measurements that are found from here on; `patch` is a MonkeyPatch."
    seen, read = set(), measures.read_kept

    def noted(file):
        if kept := read(file):
            seen.add(Path(file).name)
        return kept

    patch.setattr(measures, "read_kept", noted)
    return seen


def places_in(file: Path) -> list[str]:
    "The folders of somebody's machine that a text names."
    text = file.read_text("utf-8")
    return [word for word in ("/tmp/", "/work/", "/home/", "/root/") if word in text]
