"""Which code, which root: a command must not plan with one package and train with another.

And what it needs to start at all.
"""
import os, re, shutil, subprocess, sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reasonnb.core import paths
from reasonnb.lab.cli import app
from toy import REPO, make_root

LINE = '1.....|.....2|...3..|..4...|5.....|.....6'.replace('|', '')


@pytest.fixture
def clone(tmp_path):
    "Another checkout, whose code breaks whoever imports it."
    other = make_root(tmp_path / 'clone').resolve()
    (other / 'reasonnb').mkdir()
    (other / 'reasonnb' / '__init__.py').write_text('raise SystemExit("the code of the clone")')
    return other


def files(folder):
    "All files with their times."
    return {path: path.stat().st_mtime_ns for path in folder.rglob('*')}


@pytest.mark.parametrize('words', [
    'list',
    'show start',
    'run start',
    'sweep nbs/jobs/sweeps/both.yaml',
    'results',
    'claims',
    'docs',
    f'solve {LINE}',
])
@pytest.mark.parametrize('named', [False, True], ids=['inside', 'named'])
def test_a_root_with_other_code_is_refused(clone, words, named, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path if named else clone / 'nbs' / 'jobs')
    monkeypatch.setenv('REASONNB_SYSTEMS', 'reasonnb.systems.looped.experiments,reasonnb.systems.lattice.experiments')
    monkeypatch.setenv('REASONNB_ROOT', str(clone)) if named else monkeypatch.delenv('REASONNB_ROOT', raising=False)
    before = files(tmp_path)
    done = CliRunner().invoke(app, words.split())
    assert done.exit_code == 2 and done.stdout == '' and done.stderr.count('\n') == 1, done.output
    assert f'runs the code of {REPO}' in done.stderr
    assert f'use {clone}/.venv/bin/reasonnb' in done.stderr and f'cd {REPO}' in done.stderr
    assert files(tmp_path) == before


def test_a_link_to_the_same_code_is_the_same(tmp_path, monkeypatch):
    root = make_root(tmp_path / 'root').resolve()
    (root / 'reasonnb').symlink_to(REPO / 'reasonnb')
    monkeypatch.setenv('REASONNB_ROOT', str(root))
    assert paths.repository() == paths.workspace() == root


def test_home_is_expanded_in_every_variable(tmp_path, monkeypatch):
    make_root(tmp_path / 'root')
    values = dict(HOME=tmp_path, REASONNB_ROOT='~/root', REASONNB_DATA='~/sets')
    for name, value in values.items(): monkeypatch.setenv(name, str(value))
    assert paths.repository() == (tmp_path / 'root').resolve()
    assert paths.data_folders()[0] == (tmp_path / 'sets').resolve()
    assert paths.data_folders('~/mine') == [tmp_path / 'mine']


def test_the_kernel_imports_the_code_that_planned(tmp_path):
    """A checkout that is not installed, started in its own folder, with a root elsewhere.

    Its job must not fall back on what is installed.
    """
    mine, root = tmp_path / 'mine', make_root(tmp_path / 'root')
    shutil.copytree(REPO / 'reasonnb', mine / 'reasonnb', ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copy(REPO / 'settings.ini', mine)
    (mine / 'nbs').mkdir()
    job = root / 'nbs' / 'jobs' / 'toy.ipynb'
    imports, saying_whose = 'import os, tempfile', 'import os, tempfile, reasonnb\\nprint(\'code\', reasonnb.__file__)'
    job.write_text(job.read_text().replace(imports, saying_whose))
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    env |= {'REASONNB_ROOT': os.path.relpath(root, mine), 'REASONNB_SYSTEMS': 'toy_system', 'PYTHONPATH': str(root)}
    command = [sys.executable, '-m', 'reasonnb', 'run', 'start']
    done = subprocess.run(command, cwd=mine, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    notebook = next(root.rglob('run.ipynb')).read_text()
    assert f"code {mine.resolve()}/reasonnb/__init__.py" in notebook


def test_one_decorator_compiles():
    decorators = re.compile(r'\b(n?jit|n?vectorize|guvectorize|cfunc|stencil)\b')
    found = [path.name for path in (REPO / 'reasonnb').rglob('*.py') if decorators.search(path.read_text())]
    assert found == ['compiled.py']


READ_ONLY = '''
import numpy as np
from reasonnb.core.compiled import compiled
from reasonnb.lab.cli import app
from reasonnb.sudoku import search, symmetry
print(type(symmetry._mix._cache).__name__, hex(symmetry._mix(np.uint64(1))), type(search._push._cache).__name__)
app(['solve', '{line}'])
'''


def test_a_read_only_install_without_a_home_works(tmp_path):
    if os.name != 'posix' or os.geteuid(): pytest.skip('needs root, for a read-only mount of its own')
    script = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && cd / && exec "$2" -c "$3"'
    env = {k: v for k, v in os.environ.items() if not k.startswith(('NUMBA', 'XDG', 'REASONNB'))}
    env |= {'HOME': '/proc/nohome', 'PYTHONPATH': str(REPO)}
    code = READ_ONLY.replace('{line}', LINE)
    command = ['unshare', '-m', 'sh', '-c', script, 'sh', str(REPO), sys.executable, code]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if 'unshare' in done.stderr or 'mount' in done.stderr: pytest.skip(f'no mount of its own: {done.stderr.strip()}')
    said = done.stdout.splitlines()
    assert said and said[0] == 'NullCache 0x5692161d100b05e5 NullCache', done.stderr  # the finaliser of splitmix64 at 1
    assert 'Traceback' not in done.stderr and len(said) == 2, done.stderr


NO_LOCKS = '''
import sys
sys.modules['fcntl'] = None
from pathlib import Path
sys.path.insert(0, 'TESTS')
from reasonnb.core.config import UserError
from reasonnb.lab import cli, sweeps
from reasonnb.sudoku.datasets import load
from reasonnb.systems.lattice.neural_solver import solve
from toy_task import train
try: train(Path('FOLDER') / 'run', 'steps=2')
except UserError as e: print(e)
print(*solve('LINE'))
'''


def test_without_file_locks_one_can_solve_and_is_told_why_not_train(tmp_path):
    code = NO_LOCKS.replace('TESTS', str(Path(__file__).parent)).replace('FOLDER', str(tmp_path)).replace('LINE', LINE)
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert 'training needs the file locks of Linux or macOS' in first and len(second.split()[0]) == 36
