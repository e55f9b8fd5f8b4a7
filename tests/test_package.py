"""What is built and installed works where there is no repository; and `make` says which Python it needs."""
import json, os, re, shutil, subprocess, sys, sysconfig, tarfile, venv, zipfile
from pathlib import Path

import pytest

from reasonnb.core.paths import is_repository
from reasonnb.lab.catalogue import resolve
from reasonnb.sudoku.board import BoardShape
from reasonnb.sudoku.datasets import load
from toy import REPO

LINE = '..239.8..18...725....2...34.1.....25.34.297..2..5.........4..1.9..6.......51.3.8.'
KEPT = ('reasonnb', 'nbs/jobs', 'nbs/core', 'data/logs', 'data/checkpoints', 'tests')


def run(*command, **more):
    "Standard output and standard error of a command that must succeed."
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **more)
    assert done.returncode == 0, f'{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}'
    return done.stdout, done.stderr


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "sdist, and the wheel made from it, of a copy of the checkout."
    copy, out = tmp_path_factory.mktemp('checkout'), tmp_path_factory.mktemp('dist')
    for path in REPO.iterdir():
        if path.is_file(): shutil.copy(path, copy)
    for name in KEPT:
        shutil.copytree(REPO / name, copy / name, ignore=shutil.ignore_patterns('__pycache__', '.*'))
    shutil.copy(REPO / 'data/records.json', copy / 'data')
    run(sys.executable, '-m', 'build', '--no-isolation', '--outdir', out, copy, cwd=out)
    return next(out.glob('*.tar.gz')), next(out.glob('*.whl'))


@pytest.fixture(scope='module')
def installed(built, tmp_path_factory):
    "An environment with the package from the sdist; all else comes from the environment of the tests."
    home = tmp_path_factory.mktemp('installed')
    venv.create(home / 'venv', symlinks=True)
    python, packages = home / 'venv/bin/python', Path(sysconfig.get_path('purelib', vars=dict(base=home / 'venv')))
    # the .pth files of that environment, an editable install, do not count
    (packages / 'shared.pth').write_text(sysconfig.get_path('purelib'))
    env = {k: v for k, v in os.environ.items() if not k.startswith(('PYTHON', 'REASONNB', 'VIRTUAL'))}
    alone = '--no-index', '--no-deps', '--no-build-isolation', '--ignore-installed'
    run(sys.executable, '-m', 'pip', '--python', python, 'install', *alone, built[0], env=env)
    return home / 'venv/bin', packages, env


def test_what_is_in_them(built, installed):
    with tarfile.open(built[0]) as file: source = {name.partition('/')[2] for name in file.getnames()}
    needed = {'settings.ini', 'constraints.txt', 'README.md', 'LICENSE', 'setup.py', 'pyproject.toml'}
    assert needed | {'nbs/core/00_config.ipynb'} <= source
    with zipfile.ZipFile(built[1]) as file: wheel = {name for name in file.namelist() if name.startswith('reasonnb/')}
    for name in ('data/logs/sections.csv', 'data/records.json', 'data/checkpoints/lattice-3x3.pt',
                 'data/checkpoints/lattice-2x3.json', 'nbs/jobs/looped.ipynb', 'nbs/jobs/sweeps/smoke.yaml'):
        assert name in source and f'reasonnb/shipped/{name}' in wheel
    unwanted = re.compile(r'papermill_runs|\.pyc|/tests/|nbs/logs|data/cache|trm_exact')
    assert not [name for name in source | wheel if unwanted.search(name)]
    files = [path for path in (installed[1] / 'reasonnb').rglob('*') if path.is_file()]
    here = {path.relative_to(installed[1]).as_posix() for path in files if '__pycache__' not in path.parts}
    assert here == wheel


def test_it_works_without_a_repository(installed, tmp_path):
    bin, packages, env = installed
    empty, cache, home = (tmp_path / name for name in ('empty', 'cache', 'home'))
    for folder in (empty, cache, home):
        folder.mkdir()
    env = env | dict(XDG_CACHE_HOME=str(cache), HOME=str(home), OMP_NUM_THREADS='1')
    def say(*words): return run(bin / 'reasonnb', *words, cwd=empty, env=env)
    answer = '452391876183467259796258134819736425534829761267514398328945617971682543645173982'
    assert f'{answer} solved' in say('solve', LINE)[0]
    assert 'recur_add' in say('list')[0]
    assert not list(empty.iterdir())
    docs = [bin / 'python', '-m', 'reasonnb', 'docs']
    refused = subprocess.run(docs, cwd=empty, env=env, capture_output=True, text=True)
    message = r'reasonnb: this needs the reasonnb repository: git clone https://\S+, and .*\n'
    assert refused.returncode == 2 and re.fullmatch(message, refused.stderr)
    config = resolve('recur_add', 'smoke')
    # the same boards, made beforehand: compiling the generator once more takes half a minute
    there = cache / 'reasonnb'
    load(config.data, BoardShape(*config.box), n=config.puzzles, seed=0, data=there)
    before = set(there.rglob('*'))
    say('run', 'recur_add')
    assert set(there.rglob('*')) == before and [path.name for path in empty.iterdir()] == ['papermill_runs']
    record = json.loads(next(empty.rglob('record.json')).read_text())
    assert record['experiment'] == 'recur_add' and record['steps'] == config.steps
    params = json.dumps(json.loads(next(empty.rglob('params.json')).read_text()))
    assert str(packages / 'reasonnb') in params  # the job notebook of the package


@pytest.mark.parametrize('version', ['3.9', '3.13', 'none'])
def test_make_names_the_python_it_needs(version, tmp_path):
    if not shutil.which('make'): pytest.skip('no make')
    for name in ('Makefile', 'settings.ini', 'constraints.txt', 'setup.py', 'pyproject.toml'):
        shutil.copy(REPO / name, tmp_path)
    old = tmp_path / 'python'
    major, minor = (version if version != 'none' else '0.0').split('.')
    # a stand-in that answers as that version would, and would make an environment if it were asked to
    program = f'import sys; sys.version_info = ({major}, {minor}, 0); $2'
    old.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} -c "{program}"\nmkdir .venv\n')
    if version != 'none': old.chmod(0o755)
    done = subprocess.run(['make', f'PYTHON={old}', '.venv/ok'], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode and 'reasonnb needs Python 3.11 or 3.12' in done.stdout
    assert not (tmp_path / '.venv').exists()


def test_an_unpacked_source_is_a_place_to_work(built, tmp_path):
    with tarfile.open(built[0]) as file: file.extractall(tmp_path, filter='data')
    assert is_repository(next(tmp_path.iterdir()))
