"""One run: what it depends on, how it ends, and how it goes on. Each job here really runs under papermill."""
import json, os, subprocess, threading, time
from types import SimpleNamespace
import pytest
from reasonnb.core.config import UserError
from reasonnb.lab import runs
from reasonnb.lab.catalogue import system_of
from reasonnb.lab.runs import check_job, execute, finished, plan, status
from reasonnb.lab.sweeps import run_sweep
from toy import REPO, environment, kernels, notebook, shared_root, until


@pytest.fixture(autouse=True)
def root(monkeypatch):
    for name, value in environment(shared_root()).items(): monkeypatch.setenv(name, value)
    return shared_root()


def record(run): return json.loads((run.folder/'record.json').read_text())


def test_id_depends_on_code_and_parameters_not_on_prose(root):
    module, job = root/'toy_system.py', root/'nbs/jobs/toy.ipynb'
    text, cells, first = module.read_text(), job.read_text(), plan('fast', seed=10).id
    try:
        module.write_text(text.replace('"Gradient descent on x*x."', '"Other words."') + '\n# a comment\n')
        assert plan('fast', seed=10).id == first
        module.write_text(text.replace('x - config.rate * 2 * x', 'x - config.rate * 3 * x'))
        assert plan('fast', seed=10).id != first
        module.write_text(text)
        job.write_text(cells.replace("print('threads'", "print('Threads'"))
        assert plan('fast', seed=10).id != first
    finally:
        module.write_text(text)
        job.write_text(cells)
    assert plan('fast', seed=10).id == first != plan('fast', seed=11).id != plan('faster', seed=11).id
    sources = runs.sources(plan('fast').system)
    files = [path.relative_to(REPO).as_posix() for path in sources if path.is_relative_to(REPO)]
    assert 'reasonnb/core/config.py' in files and not any('lab/' in name for name in files)


def test_relative_imports_are_followed(tmp_path):
    for name in ('a/__init__', 'a/b/__init__', 'a/b/one', 'a/b/two', 'a/three', 'a/c/four'):
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/f'{name}.py').write_text('')
    module = tmp_path/'a/b/one.py'
    module.write_text('from . import two\nfrom ..three import x\nfrom ..c.four import y, z\nimport a.c.five\n')
    found = runs.imports_of(module, module.stat().st_mtime_ns)
    assert found == {tmp_path/f'a/{name}.py' for name in ('b/two', 'three', 'c/four')}


@pytest.mark.parametrize('slug, parts', [
    ('baseline', 'nn/loop nn/blocks nn/linear sudoku/splits sudoku/search core/optimizers systems/looped/nested'),
    ('lattice', 'sudoku/symmetry systems/lattice/search systems/lattice/rollouts core/schedules core/gradients'),
    ('equilibrium', 'images/datasets nn/fixed_points systems/equilibrium/energy core/guards core/records')])
def test_a_run_is_signed_by_all_that_its_numbers_depend_on(slug, parts, monkeypatch):
    monkeypatch.delenv('REASONNB_SYSTEMS')
    monkeypatch.delenv('REASONNB_ROOT')
    names = {path.relative_to(REPO/'reasonnb').as_posix() for path in runs.sources(system_of(slug))}
    assert {f'{part}.py' for part in parts.split()} <= names
    assert not any(name.startswith('lab/') for name in names)


def test_a_job_without_tag_or_with_wrong_types_is_refused(tmp_path):
    job = tmp_path/'job.ipynb'
    def message(*cells, **parameters):
        job.write_text(notebook(*cells))
        with pytest.raises(UserError) as caught: check_job(job, parameters)
        return str(caught.value)
    assert "no cell is tagged 'parameters'" in message(('seed: int = 0', []), seed=1)
    assert 'declares seed: str, but is given 1' in message(("seed: str = ''", ['parameters']), seed=1)
    assert 'does not declare the parameter seed: int' in message(('sead: int = 0', ['parameters']), seed=1)
    assert 'is not Python' in message(('seed: int = ', ['parameters']), seed=1)
    job.write_text(notebook(("a: str = ''  # '' = none", ['parameters'])))
    check_job(job, {'a': ''})  # papermill's own reader overlooks this one


def test_every_job_notebook_of_the_repository_can_be_driven():
    for job in (REPO/'nbs'/'jobs').glob('*.ipynb'):
        check_job(job, dict(experiment='', scale='', seed=0, overrides='', run_dir='', run_id=''))


def test_a_run_that_diverged_failed_but_leaves_its_record():
    run = plan('fast', seed=21, overrides={'trouble': 'diverge'})
    found = execute(run)
    assert (found['status'], found['error']) == ('failed', 'loss not finite')
    assert record(run)['metrics']['diverged'] == 1 and not run.unfinished.exists() and not finished(run)


def test_success_is_judged_by_record_not_by_the_notebook(monkeypatch):
    monkeypatch.setenv('MPLBACKEND', 'agg')
    troubles = ['', 'error', 'kill', 'wrong_id']
    planned = {trouble: plan('fast', seed=20, overrides={'trouble': trouble}) for trouble in troubles}
    run_sweep(planned.values(), slots=2)
    found = {trouble: status(run) for trouble, run in planned.items()}
    expected = {'': 'ok', 'error': 'failed', 'kill': 'killed', 'wrong_id': 'failed'}
    assert {trouble: one['status'] for trouble, one in found.items()} == expected
    assert found['error']['error'] == 'ValueError: the toy broke'
    assert 'the kernel was killed' in found['kill']['error']
    assert 'without a record' in found['wrong_id']['error']
    assert all(one['seconds'] > 0 and 20 < one['peak_memory'] < 2000 for one in found.values())

    said = json.loads((planned['kill'].unfinished/'run.ipynb').read_text())
    assert said['metadata']['papermill']['exception'] is None  # this is why the notebook is not asked

    good = planned['']
    assert record(good)['id'] == good.id and not good.unfinished.exists() and (good.folder/'run.ipynb').exists()
    log = (good.folder/'run.log').read_text()
    assert 'threads 1 ' in log and 'inline' in log  # one thread per slot; agg did not reach the kernel

    again = execute(planned['kill'])  # goes on from the checkpoint of step 3
    assert (again['status'], again['resumed'], record(planned['kill'])['start']) == ('ok', 3, 3)
    assert record(planned['kill'])['metrics'] == record(good)['metrics']


def test_changed_code_starts_anew_and_the_old_record_stays_until_then(root):
    run, late, module = plan('start', seed=30), plan('start', seed=31), root/'toy_system.py'
    text = module.read_text()
    assert execute(run)['status'] == 'ok'
    old = record(run)
    try:
        module.write_text(text.replace("if step == 3 and config.trouble == 'error'", 'if step == 4'))
        assert not finished(plan('start', seed=30))
        assert 'the code has changed since this run was planned' in execute(late)['error']
        assert not late.unfinished.exists()
        assert execute(plan('start', seed=30))['status'] == 'failed'
        assert record(run) == old and (run.unfinished/'checkpoint.pt').exists()
        module.write_text(text + '\nprint("more code")\n')
        changed = plan('start', seed=30)
        assert execute(changed)['resumed'] == 0
        assert finished(changed) and record(run)['id'] == changed.id != run.id and record(run)['start'] == 0
    finally: module.write_text(text)
    assert not finished(run)


def test_timeout_ends_the_kernel_and_keeps_the_checkpoint(monkeypatch):
    run = plan('start', seed=40, overrides='pause=0.05 steps=10000')
    def hasty():  # a clock that jumps once the job trains, however long its kernel took to start
        return time.monotonic() + 1000 * (runs.progress(run).get('step', 0) > 1)
    monkeypatch.setattr(runs, 'time', SimpleNamespace(**vars(time) | {'monotonic': hasty}))
    found = execute(run, seconds=500)
    assert (found['status'], found['error']) == ('timeout', 'not done after 500 s')
    assert found['seconds'] < 60 and not kernels(run.folder)
    assert runs.progress(run)['step'] > 1 and (run.unfinished/'checkpoint.pt').exists()


def test_full_disk_fails_in_one_line_and_goes_on_when_there_is_room():
    run = plan('start', seed=50)
    run.unfinished.mkdir(parents=True)
    (run.unfinished/'params.json').write_text(json.dumps({'id': run.id}))
    (run.unfinished/'metrics.jsonl').symlink_to('/dev/full')
    found = execute(run)
    assert found['status'] == 'failed' and 'No space left on device' in found['error'] and '\n' not in found['error']
    (run.unfinished/'metrics.jsonl').unlink()
    assert execute(run)['status'] == 'ok'


def test_full_disk_of_the_driver(root):
    run = plan('start', seed=51)
    run.folder.mkdir(parents=True)
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=16k', 'tmpfs', run.folder]
    mounted = subprocess.run(mount, capture_output=True).returncode == 0
    if not mounted: pytest.skip('mounting a small disk needs root')
    try:
        (run.folder/'status.json').write_text('{"status": "killed", "id": "x"}')
        try: (run.folder/'filler').write_bytes(b'x' * 10**6)
        except OSError: pass
        found = execute(run)
        assert found['status'] == 'failed'
        assert 'No space left on device' in found['error'] and str(run.folder) in found['error']
        assert status(run) == {'status': 'killed', 'id': 'x'}
    finally: subprocess.run(['umount', run.folder], check=True)


def test_a_kernel_that_does_not_start_is_tried_twice(monkeypatch):
    no_kernel = {'status': 'no kernel', 'error': 'no'}
    answers = [no_kernel, {'status': 'failed', 'error': 'other'}, no_kernel.copy(), no_kernel.copy()]
    monkeypatch.setattr(runs, '_attempt', lambda *_, **__: answers.pop(0))
    assert execute(plan('start', seed=60))['error'] == 'other'
    assert execute(plan('start', seed=60))['status'] == 'failed' and not answers


def test_a_run_that_somebody_is_at_is_left_alone():
    run = plan('start', seed=70)
    run.folder.mkdir(parents=True)
    with runs._locked(run.folder):
        runs._write_status(run, status='running')
        assert execute(run)['status'] == 'busy' and status(run)['status'] == 'running'
    assert status(run)['status'] == 'killed'  # nobody is at it: its driver died


def test_a_complete_record_finishes_a_run_whoever_wrote_it():
    run = plan('start', seed=80)
    run.folder.mkdir(parents=True)
    def seen(record, told=None):
        (run.folder/'record.json').write_text(record if isinstance(record, str) else json.dumps(record))
        (run.folder/'status.json').unlink(missing_ok=True)
        if told: runs._write_status(run, status=told)
        return finished(run), status(run)['status']
    good = {'id': run.id, 'experiment': 'start', 'scale': 'smoke', 'seed': 80, 'metrics': {'loss': 1.0}}
    assert seen(good) == seen(good, 'queued') == (True, 'ok')
    assert seen(good, 'running') == (True, 'ok')  # the driver died after its last file
    assert seen(good | {'id': 'f' * 12}) == (False, 'not run')
    assert seen(good | {'metrics': {'diverged': 1.0}}) == (False, 'not run')
    assert seen(json.dumps(good)[:-4]) == seen('[]') == seen('') == seen({'id': run.id}) == (False, 'not run')


def test_stopping_interrupts_the_job():
    run, stop, answer = plan('start', seed=90, overrides='pause=0.05 steps=10000'), threading.Event(), {}
    thread = threading.Thread(target=lambda: answer.update(execute(run, stop=stop)))
    thread.start()
    until(lambda: runs.progress(run).get('step', 0) > 5)
    stop.set()
    thread.join(20)
    assert (answer['status'], answer['error']) == ('killed', 'interrupted') and not kernels(run.folder)
    said = (run.unfinished/'run.ipynb').read_text()
    assert 'KeyboardInterrupt' in said  # asked, not forced


def test_the_machine_does_not_decide_what_runs(root, tmp_path, monkeypatch):
    "Another kernel called python3, start-up files, no home, a long folder for temporary files: one run among them all."
    run, marks = plan('start', seed=110), tmp_path/'marks'
    leave_mark = f'open({str(marks)!r}, "a").write(__file__)'
    def place(*parts, text):
        file = tmp_path.joinpath(*parts)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file
    foreign = json.dumps({'argv': ['/bin/false', '{connection_file}'], 'display_name': 'foreign', 'language': 'python'})
    place('jupyter', 'kernels', 'python3', 'kernel.json', text=foreign)
    place('ipython', 'profile_default', 'startup', '00.py', text=leave_mark)
    leave = 'c.InteractiveShellApp.exec_lines = ["import os; os._exit(3)"]'
    place('ipython', 'profile_default', 'ipython_kernel_config.py', text=leave)
    long = place('scratch', *['a_folder_of_a_project_with_a_long_name'] * 4, 'x', text='').parent
    values = {
        'JUPYTER_PATH': tmp_path/'jupyter',
        'JUPYTER_DATA_DIR': tmp_path/'jupyter',
        'JUPYTER_RUNTIME_DIR': '/proc/none',
        'TMPDIR': long,
        'IPYTHONDIR': tmp_path/'ipython',
        'PYTHONSTARTUP': place('start.py', text=leave_mark),
        'HOME': '/proc/none',
    }
    for name, value in values.items(): monkeypatch.setenv(name, str(value))
    found = execute(run)
    assert found['status'] == 'ok', found
    assert not marks.exists() and not list(long.glob('reasonnb-*'))


def test_a_kernel_that_cannot_start_says_why(tmp_path, monkeypatch):
    (tmp_path/'ipykernel.py').write_text('raise ImportError("no zmq for this Python")')
    monkeypatch.setenv('PYTHONPATH', f'{tmp_path}{os.pathsep}{os.environ["PYTHONPATH"]}')
    found = execute(plan('start', seed=111))
    assert found['status'] == 'failed'
    assert found['error'] == 'the kernel did not start: ImportError: no zmq for this Python'


def test_values_are_checked_before_anything_starts(monkeypatch):
    refused = [
        (dict(seed=-1), 'seed=-1: must not be negative'),
        (dict(seed=2**32), 'seed=4294967296: must be at most 4294967295'),
        (dict(seed=True), 'seed=True: expected int'),
        (dict(overrides='device=gpu'), "device='gpu': expected one of 'auto'"),
        (dict(overrides={'data': ' blank in front'}), 'cannot be written as text'),
    ]
    for words, message in refused:
        with pytest.raises(UserError) as caught: plan('start', **words)
        assert message in str(caught.value)
    for name in ('cuda', 'mps'):
        monkeypatch.setattr(f'torch.{dict(cuda="cuda", mps="backends.mps")[name]}.is_available', lambda: False)
        run = plan('start', seed=120, overrides={'device': name})
        with pytest.raises(UserError, match=f"device='{name}' is not available here"): run_sweep([run])
        assert not run.folder.exists()
    for seconds in (-1, float('nan'), float('inf'), True):
        with pytest.raises(UserError, match='is not a number of seconds'): run_sweep([run], seconds=seconds)
