"""One run: what it depends on, how it ends, and how it goes on. Each job here really runs under papermill."""
import json, os, subprocess, threading
from pathlib import Path
import pytest
from reasonnb.core.config import UserError
from reasonnb.lab import runs
from reasonnb.lab.runs import check_job, execute, finished, plan, run_id, status
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
    files = [path.relative_to(REPO).as_posix() for path in runs.sources(runs.system_of('fast')) if path.is_relative_to(REPO)]
    assert 'reasonnb/core/config.py' in files and not any('lab/' in name for name in files)


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
    assert {trouble: one['status'] for trouble, one in found.items()} == {'': 'ok', 'error': 'failed', 'kill': 'killed', 'wrong_id': 'failed'}
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
    run, module = plan('start', seed=30), root/'toy_system.py'
    text = module.read_text()
    assert execute(run)['status'] == 'ok'
    old = record(run)
    try:
        module.write_text(text.replace("if step == 3 and config.trouble == 'error'", 'if step == 4'))
        assert not finished(plan('start', seed=30))
        assert execute(plan('start', seed=30))['status'] == 'failed'
        assert record(run) == old and (run.unfinished/'checkpoint.pt').exists()
        module.write_text(text + '\nprint("more code")\n')
        changed = plan('start', seed=30)
        assert execute(changed)['resumed'] == 0
        assert finished(changed) and record(run)['id'] == changed.id != run.id and record(run)['start'] == 0
    finally: module.write_text(text)
    assert not finished(run)


def test_timeout_ends_the_kernel_and_keeps_the_checkpoint():
    run = plan('start', seed=40, overrides='pause=0.05 steps=10000')
    found = execute(run, seconds=15)  # on a busy machine a kernel takes most of that to start
    assert (found['status'], found['error']) == ('timeout', 'not done after 15 s')
    assert found['seconds'] < 40 and not kernels(run.folder)
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
    mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=16k', 'tmpfs', run.folder], capture_output=True).returncode == 0
    if not mounted: pytest.skip('mounting a small disk needs root')
    try:
        (run.folder/'status.json').write_text('{"status": "killed", "id": "x"}')
        try: (run.folder/'filler').write_bytes(b'x' * 10**6)
        except OSError: pass
        found = execute(run)
        assert found['status'] == 'failed' and 'No space left on device' in found['error'] and str(run.folder) in found['error']
        assert status(run) == {'status': 'killed', 'id': 'x'}
    finally: subprocess.run(['umount', run.folder], check=True)


def test_a_kernel_that_does_not_start_is_tried_twice(monkeypatch):
    answers = [{'status': 'no kernel', 'error': 'no'}, {'status': 'failed', 'error': 'other'}, *[{'status': 'no kernel', 'error': 'no'}] * 2]
    monkeypatch.setattr(runs, '_attempt', lambda *_: answers.pop(0))
    assert execute(plan('start', seed=60))['error'] == 'other'
    assert execute(plan('start', seed=60))['status'] == 'failed' and not answers


def test_a_run_that_somebody_is_at_is_left_alone():
    run = plan('start', seed=70)
    run.folder.mkdir(parents=True)
    with runs._locked(run.folder):
        runs._write_status(run, status='running')
        assert execute(run)['status'] == 'busy' and status(run)['status'] == 'running'
    assert status(run)['status'] == 'killed'  # nobody is at it: its driver died


def test_a_record_without_status_is_run_again():
    run = plan('start', seed=80)
    run.folder.mkdir(parents=True)
    (run.folder/'record.json').write_text(json.dumps({'id': run.id}))  # as in a fresh clone
    assert not finished(run) and status(run)['status'] == 'not run'


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
