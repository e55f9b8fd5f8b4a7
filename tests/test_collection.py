"Every process finds the same tests in the same order: two workers that differ end the whole run with an error."
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def collect(folder, *what, seed='4711'):
    "The tests another process finds, with another order of sets and at another time of day."
    command = [sys.executable, '-m', 'pytest', '--collect-only', '-q', '-o', 'addopts=', '-p',
               'no:cacheprovider', *what]
    environment = {key: value for key, value in os.environ.items() if not key.startswith('PYTEST_')}
    environment |= {'PYTHONHASHSEED': seed, 'PYTEST_DISABLE_PLUGIN_AUTOLOAD': '1'}  # plugins add seconds, but no tests
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return [line for line in done.stdout.splitlines() if '::' in line]


def file_of(name): return name.split('::')[0]


def same(mine, theirs, selected):
    "`selected`: of a file's tests, only some were asked for here. Files come in the order in which they were named."
    files = {file_of(name) for name in mine}
    found = [name for name in theirs if (name in mine if selected else file_of(name) in files)]
    return sorted(mine, key=file_of) == sorted(found, key=file_of)


def test_another_process_finds_the_same_tests(request):
    option = request.config.option
    mine = [item.nodeid for item in request.session.items if item.nodeid.startswith('tests/')]
    selected = bool(option.keyword or option.markexpr or any('::' in str(arg) for arg in request.config.args))
    theirs = collect(ROOT, *sorted({file_of(name) for name in mine}))
    assert same(mine, theirs, selected)


def test_a_clock_and_the_order_of_a_set_are_noticed(tmp_path):
    cases = dict(clock='[time.time_ns()]', order='set("abcdefghijklmnop")', fixed='"abc"')
    case = "@pytest.mark.parametrize('x', {1})\ndef test_{0}(x): pass\n"
    lines = [case.format(*both) for both in cases.items()]
    (tmp_path/'test_a.py').write_text('import time, pytest\n' + '\n'.join(lines))
    first, second = (collect(tmp_path, '--rootdir', '.', '-c', os.devnull, seed=seed) for seed in '12')
    for name in cases:
        one, other = ([found for found in names if f'test_{name}' in found] for names in (first, second))
        assert one and same(one, other, selected=False) == (name == 'fixed')


def test_interrupts_are_heeded():
    "Also when make was started by nohup; what is started and interrupted here inherits it."
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
