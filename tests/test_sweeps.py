"""Many runs: planning, slots, skipping, retrying, and the other ways to run them."""
import json, os, subprocess, sys, threading, time
from types import SimpleNamespace
import pytest
from reasonnb.core.config import UserError
from reasonnb.lab import pools, sweeps
from reasonnb.lab.pools import count_slots, gpus
from reasonnb.lab.runs import plan, status
from reasonnb.lab.sweeps import load_sweep, plan_sweep, run_sweep, shell_command
from toy import REPO, environment, shared_root


@pytest.fixture
def root(monkeypatch):
    for name, value in environment(shared_root()).items(): monkeypatch.setenv(name, value)
    for name in ('RAY_ADDRESS', 'REASONNB_SLOTS'): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    return shared_root()


@pytest.mark.parametrize('path', sorted((REPO/'nbs'/'jobs').rglob('*.yaml')), ids=lambda path: path.stem)
def test_shipped_sweeps_can_start(path):
    planned = load_sweep(path)
    assert planned.runs and len({run.id for run in planned.runs}) == len(planned.runs)
    assert all(run.job.is_relative_to(REPO) for run in planned.runs)


def test_a_misspelt_sweep_file_is_answered_with_those_there_are():
    found = r'there are .*sweeps/iteration\.yaml.* in nbs/jobs'
    with pytest.raises(UserError, match=found): load_sweep('itration.yaml')


@pytest.mark.parametrize('text, message', [
    ('experiment: [fast]', "unknown key 'experiment': did you mean 'experiments'?"),
    ('experiments: []', 'experiments is empty'),
    ('experiments: [fast]\nscales: [laptpo]', "unknown scale 'laptpo': did you mean 'laptop'?"),
    ('experiments: [fast]\nseeds: [true]', 'seeds: True is not a whole number'),
    ('experiments: [fast]\nseeds: [1.5]', 'seeds: 1.5 is not a whole number'),
    ('experiments: [fast]\nseeds: [0, -7]', 'seed=-7: must not be negative'),
    ('experiments: [fast]\nseeds: [99999999999]', 'seed=99999999999: must be at most'),
    ('experiments: [fast]\ntimeout: .nan', 'timeout: nan is not a number of seconds'),
    ('experiments: [fast]\ntimeout: -3', 'timeout: -3 is not a number of seconds'),
    ('experiments: [fast]\noverrides: [device=gpu]', "device='gpu': expected one of"),
    ('experiments: [fast]\nscales: [smoke]\nexperiments: [start]', "line 3: 'experiments' stands there twice"),
    ('experiments: [fast]\noverrides: [{steps: 2, rate: 1, steps: 3}]', "line 2: 'steps' stands there twice"),
    ('experiments:\n\t- fast', 'is not YAML'),
    ('', 'expected keys'),
    (b'experiments: [fast] # caf\xe9', 'line 1 is not UTF-8 text'),
    (b'experiments: [fast]\nseeds: [0] # \xb5', 'line 2 is not UTF-8 text'),
    (bytes(range(256)), 'is not UTF-8 text'),
    (b'\xff\xfee\x00x', 'is not UTF-16 text'),
    ('experiments: [fast]\noverrides: [{steps: 2.5}]', 'steps=2.5'),
    ('experiments: [fast]\noverrides: [seed=3]', 'seed is not an override'),
    ('experiments: [fast', 'is not YAML'),
    ('- fast', 'expected keys'),
])
def test_a_slip_in_a_sweep_file_is_one_line(root, tmp_path, text, message):
    file = tmp_path/'slip.yaml'
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught: load_sweep(file)
    assert message in str(caught.value) and str(file) in str(caught.value) and '\n' not in str(caught.value)


def test_a_sweep_file_may_be_utf_16_but_no_folder(root, tmp_path):
    file = tmp_path/'wide.yaml'
    for codec in ('utf-8-sig', 'utf-16', 'utf-16-be'):
        file.write_bytes(('\ufeff' * (codec == 'utf-16-be') + 'experiments: [fast]  # café').encode(codec))
        assert [run.name for run in load_sweep(file).runs] == ['fast smoke s0']
    with pytest.raises(UserError, match=f'sweep file {tmp_path}: Is a directory'): load_sweep(tmp_path)


def test_finished_runs_are_skipped_and_failed_ones_retried(root):
    runs, lines = plan_sweep(['fast', 'twin'], seeds=[100], overrides=['', 'trouble=kill']).runs, []
    def sweep():
        lines.clear()
        found = run_sweep(runs, slots=2, say=lambda line, lasting: lines.append(line), every=0.2)
        return [found[run]['status'] for run in runs]
    assert len(runs) == 2  # the twin is not run twice
    assert sweep() == ['ok', 'killed']
    assert any('/5 loss ' in line or line.endswith(' starting') for line in lines)
    began = {run: status(run)['started'] for run in runs}
    assert sweep() == ['ok', 'ok']
    assert sum(line.startswith('skip') for line in lines) == 1 and sum(' from step 3' in line for line in lines) == 1
    assert [status(run)['started'] == began[run] for run in runs] == [True, False]


def test_each_slot_does_one_run_at_a_time_and_has_its_gpu(root, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '3,5')
    lock, active, most, seen = threading.Lock(), {}, [0], []
    def fake(run, env, seconds, stop, force):
        gpu = env['CUDA_VISIBLE_DEVICES']
        with lock:
            active[gpu] = active.get(gpu, 0) + 1
            most[0] = max(most[0], *active.values())
            seen.append(gpu)
        time.sleep(0.05)
        with lock: active[gpu] -= 1
        return {'status': 'ok', 'seconds': 0, 'peak_memory': 0}
    monkeypatch.setattr(pools, 'execute', fake)
    assert gpus() == ['3', '5'] and count_slots() == 2
    run_sweep(plan_sweep(['start'], seeds=range(200, 210)).runs)
    assert len(seen) == 10 and set(seen) == {'3', '5'} and most[0] == 1
    run_sweep(plan_sweep(['start'], seeds=range(200, 210)).runs, slots=4)  # two runs share a card
    assert most[0] == 2


def test_slots_share_the_cores_of_a_machine_with_cards(monkeypatch):
    monkeypatch.setattr(pools, 'cores', lambda: 8)
    assert pools.slot_env(1, 3, ['a', 'b'])['OMP_NUM_THREADS'] == '2'
    assert pools.slot_env(1, 3, [])['OMP_NUM_THREADS'] == '1'


def test_the_time_left_follows_the_pace_since_the_run_was_first_seen(monkeypatch):
    monkeypatch.setattr(sweeps, 'progress', lambda run: {'step': 200})
    run, ago = SimpleNamespace(name='one', config=SimpleNamespace(steps=400)), time.time() - 10
    assert sweeps.progress_text(run, (ago, 100)) == 'one 200/400 eta 0:20'
    assert sweeps.progress_text(run, (ago, 200)) == sweeps.progress_text(run) == 'one 200/400'


def test_slots_can_be_set(root, monkeypatch):
    assert gpus() == [] and count_slots() == pools.cores()
    monkeypatch.setenv('REASONNB_SLOTS', '7')
    assert count_slots() == 7
    for slots in ('many', '0', '-1', '1.5', '²'):
        monkeypatch.setenv('REASONNB_SLOTS', slots)
        with pytest.raises(UserError, match=f'REASONNB_SLOTS={slots}'): count_slots()


def test_the_printed_command_is_the_run(root, tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', os.path.dirname(sys.executable), prepend=os.pathsep)
    (root/"it's a file.csv").write_text('1')
    run = plan('fast', seed=300, overrides={'steps': 4, 'data': f"{root}/it's a file.csv"})
    # a queue starts it anywhere
    done = subprocess.run(shell_command(run), shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads((run.folder/'record.json').read_text())
    assert record['id'] == run.id and record['steps'] == 4 and record['seed'] == 300 and not run.unfinished.exists()
    for alone in (False, True):
        if alone: (run.folder/'status.json').unlink()  # the record is enough
        lines = []
        run_sweep([run], say=lambda line, lasting: lines.append(line))
        assert lines == [f'skip {run.name}: finished earlier']


def test_a_cluster_without_ray_is_a_clear_mistake(root, monkeypatch):
    monkeypatch.setenv('RAY_ADDRESS', '127.0.0.1:1')
    monkeypatch.setitem(sys.modules, 'ray', None)
    with pytest.raises(UserError, match='ray is not installed'): run_sweep([plan('fast', seed=400)])


@pytest.mark.slow
def test_ray_gives_each_run_a_gpu(root, monkeypatch):
    ray = pytest.importorskip('ray')
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES')
    monkeypatch.setenv('RAY_ADDRESS', 'local')
    monkeypatch.setenv('RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO', '0')
    try:
        ray.init(
            num_gpus=2,
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            runtime_env={'env_vars': environment(root)},
        )
        runs = plan_sweep(['start'], seeds=[500, 501], overrides=['pause=0.5']).runs
        assert [found['status'] for found in run_sweep(runs).values()] == ['ok', 'ok']
        assert {(run.folder/'run.log').read_text().split('gpu ')[1][0] for run in runs} == {'0', '1'}
    finally: ray.shutdown()
