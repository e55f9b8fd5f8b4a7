"""The one form of our notebooks: that in which JupyterLab writes them, so that opening and saving one changes nothing.

`make export` runs this after nbdev_clean, which keeps whatever form it finds. Job notebooks lose their outputs here,
as they are templates, and cells marked `#| code-fold` are folded in JupyterLab, as on the site.
Prints the notebooks it rewrote; with `--check` it rewrites none and fails if there are any.
"""
import re
import sys
from pathlib import Path

import nbformat

NBS = Path(__file__).parents[1] / "nbs"


def normal(text: str, job: bool = False) -> str:
    "A notebook as JupyterLab writes it; that of a job without outputs."
    notebook = nbformat.reads(text, as_version=4)
    for cell in notebook.cells:
        cell.metadata.pop("jupyter", None)
        if cell.cell_type != "code": continue
        folded = re.search(r"^#\|\s*code-fold:\s*true\s*$", cell.source, re.M)
        if folded: cell.metadata["jupyter"] = {"source_hidden": True}
        if job: cell.outputs, cell.execution_count = [], None
    return nbformat.writes(notebook) + "\n"


def changed(write: bool, nbs: Path = NBS) -> list[Path]:
    "The notebooks that have another form; rewritten if asked for."
    found = []
    for path in sorted(p for p in nbs.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts):
        old = path.read_text(encoding="utf-8")
        new = normal(old, job=path.parent.name == "jobs")
        if new == old: continue
        found.append(path.relative_to(nbs))
        if write: path.write_text(new, encoding="utf-8")
    return found


if __name__ == "__main__":
    found = changed(write="--check" not in sys.argv)
    print(*found, sep="\n", end="\n" * bool(found))
    sys.exit("--check" in sys.argv and bool(found))
