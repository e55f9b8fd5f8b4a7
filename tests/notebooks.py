"""Runs notebooks the way `nbdev_test` does, each in a process of its own that has the slow imports behind it.

A server imports the large packages once and forks for every notebook: nothing a notebook sets outlives it, and
none waits for torch again. A notebook's process ends with the process that asked for it, however that one ends."""
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMPORTED = ['torch._dynamo', 'numba', 'scipy.stats', 'seaborn', 'matplotlib.pyplot', 'nbdev.test', 'fastcore.test']


def library(root: Path = ROOT) -> list[Path]:
    "Notebooks that `nbdev_test` runs, without the narratives: nbval runs those and compares what they show."
    found = sorted(root.glob('nbs/**/*.ipynb'))
    hidden = [path for path in found if any(part[0] in '._' for part in path.relative_to(root).parts)]
    return [path for path in found if path not in hidden and path.relative_to(root).parts[1] != 'logs']


def _die_with(parent):
    "Leave nothing behind: the notebook's process group goes when the parent is gone."
    parent.join()
    os.killpg(0, signal.SIGKILL)


def _run(path: Path, said: str):
    "Body of the child: run one notebook; what it says goes into a file."
    os.setpgid(0, 0)
    threading.Thread(target=_die_with, args=[multiprocessing.parent_process()], daemon=True).start()
    with open(said, 'w') as file:
        for stream in (1, 2): os.dup2(file.fileno(), stream)
    from nbdev.config import get_config
    from nbdev.test import test_nb
    os.chdir(path.parent)
    flags = get_config(path=path.parent).tst_flags.split()
    passed, _ = test_nb(path, skip_flags=flags, basepath=get_config().config_path)
    sys.stderr.flush()
    os._exit(0 if passed else 1)


def run(path: Path) -> str:
    "Run a notebook; what went wrong, '' for nothing."
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(IMPORTED)
    with tempfile.NamedTemporaryFile('r', errors='replace') as said:
        child = context.Process(target=_run, args=(path, said.name))
        child.start()
        try: child.join()
        finally:
            if child.exitcode is None: os.killpg(child.pid, signal.SIGKILL)
        if child.exitcode == 0: return ''
        return f'{said.read().strip()}\n{path.name} failed (exit code {child.exitcode})'
