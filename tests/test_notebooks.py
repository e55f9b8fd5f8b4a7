"The library's notebooks, one test each; and what happens when one fails or the whole is stopped."
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

import notebooks


def short(path): return path.relative_to(notebooks.ROOT/'nbs').as_posix()


@pytest.mark.parametrize('path', notebooks.library(), ids=short)
def test_notebook(path):
    wrong = notebooks.run(path)
    if wrong: pytest.fail(wrong, pytrace=False)


TESTS = """
import notebooks, pytest
notebooks.IMPORTED[:] = ['nbdev.test']

@pytest.mark.parametrize('path', notebooks.library(notebooks.Path('.').resolve()), ids=lambda path: path.stem)
def test_notebook(path):
    if wrong := notebooks.run(path): pytest.fail(wrong, pytrace=False)
"""


def project(folder, **sources):
    "A repository in miniature with notebooks of one cell each, tested as the library's are."
    (folder/'nbs').mkdir()
    (folder/'settings.ini').write_text('[DEFAULT]\nlib_name = tiny\nnbs_path = nbs\ntst_flags = slow\nuser = nobody\n')
    for name, source in sources.items():
        cells = [dict(cell_type='code', id='one', metadata={}, execution_count=None, outputs=[], source=source)]
        whole = dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)
        (folder/f'nbs/{name}.ipynb').write_text(json.dumps(whole))
    (folder/'test_notebooks.py').write_text(TESTS)
    return folder


def start(folder, *options):
    "pytest over a project, in a session of its own as a make started by somebody else is."
    plain = ['-q', '-p', 'no:cacheprovider', '-p', 'xdist.plugin', '-c', os.devnull, '--rootdir', '.']
    environment = {key: value for key, value in os.environ.items() if not key.startswith('PYTEST_')}
    environment['PYTEST_DISABLE_PLUGIN_AUTOLOAD'] = '1'
    environment['PYTHONPATH'] = os.pathsep.join([str(notebooks.ROOT/'tests'), environment.get('PYTHONPATH', '')])
    command = [sys.executable, '-m', 'pytest', *plain, *options, 'test_notebooks.py']
    def heed_interrupts(): signal.signal(signal.SIGINT, signal.SIG_DFL)  # also where somebody above ignores them
    return subprocess.Popen(command, cwd=folder, text=True, env=environment, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=heed_interrupts)


def alive(process):
    "Still running; one that nobody has reaped yet is not."
    try: return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess: return False


def test_a_failing_notebook_is_named_last_and_a_slow_one_still_counts(tmp_path):
    quick = 'import os\nopen("../quick", "w")\nassert 1 + 1 == 3, "arithmetic"'
    slow = 'import os, time\nwhile not os.path.exists("../quick"): time.sleep(.02)\nopen("../slow", "w")'
    folder = project(tmp_path, quick=quick, slow=slow, skipped='#| slow\n1/0')
    said = start(folder, '-n', '2').communicate(timeout=300)[0]
    assert (folder/'slow').exists() and '1 failed, 2 passed' in said
    assert 'AssertionError: arithmetic' in said and 'quick.ipynb failed' in said
    summary = said.partition('short test summary info')[2]
    assert 'FAILED test_notebooks.py::test_notebook[quick]' in summary, said


@pytest.mark.parametrize('stop', [signal.SIGINT, signal.SIGKILL])
def test_nothing_survives_when_the_whole_is_stopped(tmp_path, stop):
    "A notebook that hangs with a child of its own, whether stopped by Ctrl-C or killed."
    hang = 'import os, subprocess, time\nchild = subprocess.Popen(["sleep", "900"])\n' \
           'open("../pids", "w").write(f"{os.getpid()} {child.pid} end")\nwhile True: time.sleep(1)'
    folder = project(tmp_path, hang=hang)
    with start(folder, '-n', '1') as tests:
        try:
            deadline = time.monotonic() + 300  # of a busy machine
            while not ((folder/'pids').exists() and (folder/'pids').read_text().endswith('end')):
                assert tests.poll() is None and time.monotonic() < deadline, tests.stdout.read()
                time.sleep(.05)
            left = psutil.Process(tests.pid).children(recursive=True)  # worker, fork server, notebook, its child
            assert {int(pid) for pid in (folder/'pids').read_text().split()[:2]} <= {p.pid for p in left}
            os.kill(tests.pid, stop)
            while any(map(alive, left)):
                assert time.monotonic() < deadline, left
                time.sleep(.05)
        finally: tests.kill()
