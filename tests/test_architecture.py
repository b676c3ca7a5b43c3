import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAP = ROOT / "docs" / "explanation" / "architecture.md"
LINE = re.compile(r"(?P<indent> *)(?P<name>[\w.]+/?)(?: {2,}(?P<about>\S.*))?")


def drawn():
    """The files of the fenced tree that starts with `src/tagsmith/`, each with what is said about it."""
    tree = re.search(r"```\nsrc/tagsmith/\n(.*?)```", MAP.read_text(encoding="utf-8"), re.DOTALL).group(1)
    files, folders = {}, []
    for line in tree.splitlines():
        found = LINE.fullmatch(line)
        assert found, f"this line of the tree cannot be read: {line!r}"
        depth = len(found["indent"]) // 2 - 1
        folders[depth:] = [found["name"]]
        if not found["name"].endswith("/"):
            files["".join(folders)] = found["about"]
    return files


def on_disk():
    package = ROOT / "src" / "tagsmith"
    files = {path.relative_to(package).as_posix() for kind in ("*.py", "*.html") for path in package.rglob(kind)}
    return {path for path in files if not path.endswith("/__init__.py")}  # a folder's face is one docstring


def test_the_tree_in_the_docs_is_the_tree_on_disk():
    missing, extra = on_disk() - set(drawn()), set(drawn()) - on_disk()
    assert not missing, f"not in {MAP.name}: {sorted(missing)}"
    assert not extra, f"in {MAP.name}, but not on disk: {sorted(extra)}"


def test_each_file_of_the_tree_says_what_it_is_for():
    assert [file for file, about in drawn().items() if not about] == []


def test_the_faces_of_folders_hold_no_code():
    faces = [path for path in (ROOT / "src" / "tagsmith").glob("*/__init__.py") if path.read_text().count("\n") > 1]
    assert faces == []


def test_no_file_is_called_utils():
    assert [file for file in on_disk() if re.search(r"(utils|helpers|misc|common)\.py$", file)] == []
