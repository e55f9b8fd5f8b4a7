"""Numbers of notebooks: contiguous in each folder, without letters; in the library the order in which modules import.

`python tests/renumber.py` renames what is out of order and every link to it; with `--check` it only says what it
would do."""
import ast
import os
import re
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
TEXTS = (
    "*.md",
    "*.toml",
    "*.yml",
    "conftest.py",
    "Makefile",
    "tests/*.py",
    "benchmarks/*.*",
    "data/**/*.md",
    "nbs/*.yml",
)


def folders() -> list[Path]:
    "Folders of library notebooks."
    flat = [NBS / name for name in ("core", "nn", "sudoku", "images", "text", "lab")]
    here = flat + sorted((NBS / "systems").glob("*"))
    return [folder for folder in here if folder.is_dir()]


def name_of(path: Path) -> str:
    "A notebook's name without its number."
    return re.sub(r"^\d+[a-z]?_", "", path.stem)


def imports(path: Path) -> set[str]:
    "Modules of its own folder that the exported cells of a notebook import."
    package = "reasonnb." + ".".join(path.parent.relative_to(NBS).parts)
    found = set()
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code" or not re.search(r"^#\|\s*export", cell.source, re.M): continue
        for node in ast.walk(ast.parse(cell.source)):
            if not isinstance(node, ast.ImportFrom) or not node.module: continue
            if node.module == package: found |= {alias.name for alias in node.names}
            if node.module.startswith(package + "."): found.add(node.module.removeprefix(package + ".").split(".")[0])
    return found


def ordered(folder: Path) -> list[Path]:
    "The notebooks of a folder: as they are numbered, but none before what it imports."
    left = sorted(folder.glob("*.ipynb"))
    needs = {path: imports(path) for path in left}
    order = []
    while left:
        waiting = {name_of(path) for path in left}
        ready = [path for path in left if not needs[path] & (waiting - {name_of(path)})]
        if not ready:
            circle = ", ".join(sorted(waiting))
            sys.exit(f"{folder.relative_to(ROOT)}: {circle} import each other in a circle")
        order.append(ready[0])
        left.remove(ready[0])
    return order


def renamed() -> dict[Path, Path]:
    "Old and new place of each notebook whose number is not its place in the order."
    found = {}
    for folder in folders():
        for place, path in enumerate(ordered(folder)):
            goal = folder / f"{place:02d}_{name_of(path)}.ipynb"
            if goal != path: found[path] = goal
    for folder in sorted((NBS / "logs").glob("*")):  # narratives: as they are ordered, from the number of the first
        for place, path in enumerate(sorted(folder.glob("*.ipynb")), start=first_number(folder)):
            goal = folder / f"{place:02d}_{name_of(path)}.ipynb"
            if goal != path: found[path] = goal
    return found


def first_number(folder: Path) -> int:
    return min((int(path.name[:2]) for path in folder.glob("*.ipynb")), default=0)


def relinked(text: str, here: Path, moved: dict[Path, Path]) -> str:
    "A text of the folder `here` with its links and paths to moved notebooks corrected."
    def link(match):
        goal = moved.get(Path(os.path.normpath(here / match[1])))
        return f"]({Path(os.path.relpath(goal, here)).as_posix()}" if goal else match[0]

    def path(match):
        goal = moved.get(ROOT / match[0])
        return goal.relative_to(ROOT).as_posix() if goal else match[0]
    return re.sub(r"nbs/[\w/]+\.ipynb", path, re.sub(r"\]\(([^)#\s]+\.ipynb)", link, text))


def main():
    moved = renamed()
    for old, new in moved.items(): print(f"{old.relative_to(ROOT)} -> {new.name}")
    if "--check" in sys.argv: return sys.exit(bool(moved))
    for path in sorted(p for p in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts):
        notebook = nbformat.read(path, as_version=4)
        before = [cell.source for cell in notebook.cells]
        for cell in notebook.cells: cell.source = relinked(cell.source, path.parent, moved)
        if [cell.source for cell in notebook.cells] != before:
            path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    for path in {path for pattern in TEXTS for path in ROOT.glob(pattern)} - {ROOT / "CHANGELOG.md", ROOT / "LOG.md"}:
        text = path.read_text(encoding="utf-8")
        new = relinked(text, path.parent, moved)
        if new != text: path.write_text(new, encoding="utf-8")
    for old, new in moved.items(): old.rename(new.with_suffix(".moving"))
    for new in moved.values(): new.with_suffix(".moving").rename(new)


if __name__ == "__main__": main()
