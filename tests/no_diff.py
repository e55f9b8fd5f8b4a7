"""Fail if the package or the README is not what the notebooks say: run by `make test` before anything else.

Works on a copy, so that a check never changes the checkout it checks."""
import shutil, subprocess, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KEPT = ("nbs", "reasonnb", "README.md")


def files(root: Path) -> dict[str, bytes]:
    "Content of every file that nbdev or the README export may rewrite."
    found = {}
    for name in KEPT:
        for p in [root / name] if (root / name).is_file() else sorted((root / name).rglob("*")):
            if p.suffix in {".py", ".ipynb", ".md"} and not {"__pycache__", ".ipynb_checkpoints"} & set(p.parts):
                found[str(p.relative_to(root))] = p.read_bytes()
    return found


def main() -> int:
    bin = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp) / "copy"
        skip = shutil.ignore_patterns(".git", ".venv", "__pycache__", "papermill_runs", "_docs", "_proc", "*.npy")
        shutil.copytree(ROOT, copy, ignore=skip)
        before = files(copy)
        for command in ("nbdev_clean", "nbdev_export"):
            subprocess.run([bin / command], cwd=copy, check=True, stdout=subprocess.DEVNULL)
        after = files(copy)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    for name in changed:
        print(f"{name}: not what nbdev_clean and nbdev_export write; run `make export` and commit", file=sys.stderr)
    return bool(changed)


if __name__ == "__main__":
    sys.exit(main())
