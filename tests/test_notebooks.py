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


@pytest.mark.parametrize('path', notebooks.library(), ids=lambda path: path.relative_to(notebooks.ROOT/'nbs').as_posix())
def test_notebook(path):
    wrong = notebooks.run(path)
    if wrong: pytest.fail(wrong, pytrace=False)


def project(folder, **sources):
    "A repository in miniature whose tests are the library tests above, over notebooks of one cell each."
    (folder/'nbs').mkdir()
    (folder/'settings.ini').write_text('[DEFAULT]\nlib_name = tiny\nlib_path = tiny\nnbs_path = nbs\ntst_flags = slow\nuser = nobody\n')
    for name, source in sources.items():
        cells = [dict(cell_type='code', id='one', metadata={}, execution_count=None, outputs=[], source=source)]
        (folder/f'nbs/{name}.ipynb').write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))
    text = "import notebooks, pytest\n\n@pytest.mark.parametrize('path', notebooks.library(notebooks.Path('.').resolve()), ids=lambda p: p.stem)\n" \
           "def test_notebook(path):\n    if wrong := notebooks.run(path): pytest.fail(wrong, pytrace=False)\n"
    (folder/'test_notebooks.py').write_text('import notebooks\nnotebooks.IMPORTED[:] = ["nbdev.test"]\n' + text)
    return folder


def start(folder, *options):
    "pytest over a project, in a process group of its own as make's is."
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-c', os.devnull, '--rootdir', '.', *options, 'test_notebooks.py']
    environment = os.environ | {'PYTHONPATH': os.pathsep.join([str(notebooks.ROOT/'tests'), os.environ.get('PYTHONPATH', '')])}
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)


def test_a_failing_notebook_is_named_last_and_a_slow_one_still_counts(tmp_path):
    quick = 'import os\nopen("../quick", "w")\nassert 1 + 1 == 3, "arithmetic"'
    slow = 'import os, time\nwhile not os.path.exists("../quick"): time.sleep(.02)\nopen("../slow", "w")'
    folder = project(tmp_path, quick=quick, slow=slow, skipped='#| slow\n1/0')
    said = start(folder, '-n', '2').communicate(timeout=100)[0]
    assert (folder/'slow').exists() and '1 failed, 2 passed' in said
    assert 'AssertionError: arithmetic' in said and 'quick.ipynb failed' in said
    assert 'FAILED test_notebooks.py::test_notebook[quick]' in said.splitlines()[-2], said


@pytest.mark.parametrize('stop', [signal.SIGINT, signal.SIGKILL])
def test_nothing_survives_when_the_whole_is_stopped(tmp_path, stop):
    "A notebook that hangs with a child of its own, whether stopped by Ctrl-C or killed."
    hang = 'import os, subprocess, time\nchild = subprocess.Popen(["sleep", "900"])\n' \
           'open("../pids", "w").write(f"{os.getpid()} {child.pid} end")\nwhile True: time.sleep(1)'
    folder = project(tmp_path, hang=hang)
    with start(folder, '-n', '1') as tests:
        try:
            deadline = time.monotonic() + 90
            while not ((folder/'pids').exists() and (folder/'pids').read_text().endswith('end')):
                assert tests.poll() is None and time.monotonic() < deadline, tests.stdout.read()
                time.sleep(.05)
            left = [psutil.Process(int(pid)) for pid in (folder/'pids').read_text().split()[:2]]
            os.kill(tests.pid, stop)
            gone, left = psutil.wait_procs(left, timeout=60)
            assert not [p for p in left if p.status() != psutil.STATUS_ZOMBIE]
        finally: tests.kill()
