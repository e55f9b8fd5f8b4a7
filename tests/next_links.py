"""Each narrative ends in a link to the next one. `python tests/next_links.py` writes the links.

A test asks whether they are right. Every other byte of the notebooks stays as it is.
"""
import json
import os
from pathlib import Path

NBS = Path(__file__).parents[1] / "nbs"
LOGS = ("sudoku_transformer", "equilibrium", "sudoku_energy", "rust_lm", "cognate", "lattice")  # as they are read
CELL = "next"  # id of the last cell


def title(path: Path) -> str:
    "The heading of a notebook."
    first = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
    return first.splitlines()[0].removeprefix("# ")


def reading_order(nbs: Path = NBS) -> list[Path]:
    return [path for log in LOGS for path in sorted((nbs / "logs" / log).glob("*.ipynb"))]


def link(path: Path, goal: Path) -> str:
    return f"Next: [{title(goal)}]({Path(os.path.relpath(goal, path.parent)).as_posix()})"


def links(nbs: Path = NBS) -> dict[Path, str]: # notebook -> its last cell
    order = reading_order(nbs)
    found = {path: link(path, goal) for path, goal in zip(order, order[1:])}
    last = order[-1]
    start = Path(os.path.relpath(nbs / 'start.ipynb', last.parent)).as_posix()
    return found | {last: f"That was the last one. [Start]({start})"}


def write(path: Path, text: str):
    "Make `text` the last cell of a notebook."
    raw = path.read_text(encoding="utf-8")
    notebook = json.loads(raw)
    cells = [cell for cell in notebook["cells"] if cell["id"] != CELL]
    source = [text] if isinstance(cells[0]["source"], list) else text
    notebook["cells"] = [*cells, {"cell_type": "markdown", "id": CELL, "metadata": {}, "source": source}]
    new = json.dumps(notebook, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    if new != raw: path.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    for path, text in links().items(): write(path, text)
