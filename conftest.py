"""What notebooks and tests need of pytest."""
import os
import shutil
import signal
import threading

import pytest

# Units of work by their cost, dearest first: the last ones to start are short, and two workers end together.
DEAR = ('test_lab', 'test_site', 'test_runs', 'test_own_records', 'test_sweeps', 'test_dynamics', 'test_equilibrium',
        'test_trainer', 'test_solving', 'test_cli', 'test_package', '_gradient', 'other_architectures', 'test_parallel',
        'test_time', '01_lattice', '_lessons', 'trained_dynamics', 'equilibrium/06_open', '02_recurrence', '_curricula',
        'equilibrium/04_block', '05_practice', '01_beta', 'test_leaderboard', 'test_paths', 'test_reader',
        'jobs/lattice',
        '_memory', 'test_collection', '_sweeps', '03_solver', '01_symmetry', 'neural_solver', '_runs', '_benchmark')


def pytest_configure(config):
    "What nohup or a script's `&` starts ignores Ctrl-C, and so would everything that tests start and interrupt."
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if ignored and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def one_thread():
    "Two torch threads on two busy cores are slower than one."
    import torch
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


FLAGS = ('--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
         '--disable-component-update --disable-sync')


@pytest.fixture(scope='module')
def chromium():
    "Headless Chromium, the one of the system."
    def without(reason): return pytest.fail(reason) if os.environ.get('CI') else pytest.skip(reason)
    program = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    if not program: without('no chromium, chromium-browser or google-chrome on the PATH')
    try: from playwright.sync_api import sync_playwright
    except ImportError: without("playwright is not installed: pip install -e '.[dev]'")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, headless=True, args=FLAGS.split())
        yield browser
        browser.close()


def _cost(unit):
    return next((place for place, name in enumerate(DEAR) if name in unit), len(DEAR))


def pytest_collection_modifyitems(items):
    """Dear units of work first, see `DEAR`; and cells get the execution count that nbval asks for.

    nbval refuses a cell that has outputs but no count, and nbdev_clean removes the counts and keeps the outputs."""
    items.sort(key=lambda item: _cost(_unit(item.nodeid)))
    for item in items:
        cell = getattr(item, "cell", None)
        if cell is not None and cell.get("outputs") and cell.get("execution_count") is None:
            cell["execution_count"] = 1


def _unit(nodeid):
    "What one worker runs in one go: a file, but of the library's notebooks each by itself."
    return nodeid if nodeid.startswith('tests/test_notebooks.py::test_notebook[') else nodeid.split('::', 1)[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    if config.getoption('dist') != 'loadfile': return None
    from xdist.scheduler import LoadFileScheduling

    class ByUnit(LoadFileScheduling):
        def _split_scope(self, nodeid): return _unit(nodeid)
    return ByUnit(config, log)
