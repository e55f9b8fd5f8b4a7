"""The command line as a process: exit codes, one-line mistakes, and being stopped in the middle."""
import json, os, re, signal, subprocess, sys
import pytest
from toy import REPO, cli, environment, kernels, make_root, start_cli, until


@pytest.fixture(scope='module')
def root(tmp_path_factory): return make_root(tmp_path_factory.mktemp('root')).resolve()


def folder(root, name): return root/'papermill_runs'/'own'/'toy_log'/name


def test_list_and_show(root):
    code, out, err = cli(root, 'list', '--json')
    assert code == 0 and [row['slug'] for row in json.loads(out)] == ['start', 'fast', 'faster', 'twin', 'ours']
    code, out, err = cli(root, 'show', 'twin', '--scale', 'laptop')
    assert code == 0 and 'start -> fast -> twin' in out and re.search(r'same as: +fast', out)
    code, out, err = cli(root, 'show', 'faster', '--json')
    assert json.loads(out)['config']['rate'] == 0.45
    code, out, err = cli(root, 'show', 'a_plan')
    assert code == 0 and 'no configuration yet' in out


def test_answers_at_once(root):
    code = '''import sys
from typer.testing import CliRunner
from reasonnb.lab.cli import app
for words in (['--help'], ['list'], ['show', 'fast']):
    assert CliRunner().invoke(app, words).exit_code == 0, words
    heavy = {'torch', 'numba', 'matplotlib', 'papermill', 'nbclient', 'IPython'} & set(sys.modules)
    assert not heavy, (words, heavy)
'''
    done = subprocess.run([sys.executable, '-c', code], env=os.environ | environment(root), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('words, message', [
    (['run', 'fsat'], "unknown experiment 'fsat': did you mean 'fast'?"),
    (['run', 'a_plan'], "'a_plan' (toy_log, plan) has no configuration yet"),
    (['run', 'fast', '--scale', 'smoek'], "unknown scale 'smoek': did you mean 'smoke'?"),
    (['run', 'fast', '--set', 'rte=1'], "unknown field of ToyConfig 'rte': did you mean 'rate'?"),
    (['run', 'fast', '--set', 'rate=much'], "rate='much': expected float"),
    (['run', 'fast', '--set', 'rate'], 'expected name=value'),
    (['sweep', 'bth.yaml'], 'no sweep file bth.yaml; there are both.yaml in nbs/jobs'),
    (['list', '--log', 'other'], "unknown log 'other'"),
    (['results', '--log', 'other'], "unknown log 'other'"),
])
def test_mistakes_are_one_line(root, words, message):
    code, out, err = cli(root, *words)
    assert code == 2 and out == '' and err.startswith('reasonnb: ') and message in err and err.count('\n') == 1


def test_outside_a_repository(tmp_path):
    code, out, err = cli(tmp_path, 'list')
    assert code == 2 and f'REASONNB_ROOT={tmp_path}' in err and err.count('\n') == 1


def test_missing_data_file_then_there(root):
    words = ['run', 'start', '--set', f'data={root}/numbers.csv', '--json', '--live']
    code, out, err = cli(root, *words)
    line = next(line for line in err.splitlines() if line.startswith('FAILED'))
    assert code == 1 and f'no data file {root}/numbers.csv; generate it or set data=' in line and 'Traceback' not in err
    assert json.loads(out)[0]['status'] == 'failed'
    (root/'numbers.csv').write_text('1')
    code, out, err = cli(root, *words)
    assert code == 0 and json.loads(out)[0]['metrics']['loss'] > 0
    assert 'threads 1 gpu None' in err  # what the job prints, by --live


def test_a_sweep_does_what_it_can_and_says_what_it_could_not(root):
    file = root/'mixed.yaml'
    file.write_text('experiments: [fast, twin]\nseeds: [5]\noverrides: [rate=0.2, trouble=always_kill]\n')
    code, out, err = cli(root, 'sweep', str(file), '--slots', '2')
    assert code == 1 and 'twin has the settings of fast' in err
    assert 'ok fast smoke s5 rate=0.2' in err and 'KILLED fast smoke s5 trouble=always_kill' in err and '1 of 2 runs finished' in err
    assert 'rate=0.2' in out and 'always_kill' not in out
    code, out, err = cli(root, 'sweep', str(file), '--dry-run')
    assert code == 0 and out.count('papermill nbs/jobs/toy.ipynb') == 2


SLOW = ['--set', 'pause=0.05', '--set', 'steps=80']


def step(run_folder):
    try: return (run_folder/'unfinished'/'metrics.jsonl').read_text().count('\n')
    except OSError: return 0


def started(root, seed):
    "A slow run by the command line, once it has done some steps."
    process = start_cli(root, 'run', 'start', '--seed', str(seed), *SLOW)
    place = None
    def going():
        nonlocal place
        place = next(folder(root, 'start').glob(f'smoke-s{seed}-*'), None)
        return place and step(place) > 5
    until(going)
    return process, place


@pytest.mark.parametrize('number, code', [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)], ids=['ctrl-c', 'term', 'kill -9'])
def test_stopped_in_the_middle_nothing_is_lost(root, number, code):
    seed = int(number)
    process, place = started(root, seed)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code and 'Traceback' not in err
    if code == 130: assert '0 of 1 runs finished; nothing is lost, the same command goes on from here' in err
    until(lambda: not kernels(place), 20)
    assert (place/'unfinished'/'checkpoint.pt').exists() and not (place/'record.json').exists()
    if number == signal.SIGTERM: return  # from here on it is as after ctrl-c
    reached = step(place)
    code, out, err = cli(root, 'run', 'start', '--seed', str(seed), *SLOW, '--json')
    found = json.loads(out)[0]
    assert code == 0 and found['resumed'] >= reached - 1
    assert f'from step {found["resumed"]}' in err
    rows = [json.loads(line)['step'] for line in (place/'metrics.jsonl').read_text().splitlines()]
    assert max(rows) == 80 and json.loads((place/'record.json').read_text())['start'] >= reached - 1


def test_claims_of_the_repository_for_a_program():
    env = {name: value for name, value in os.environ.items() if not name.startswith('REASONNB')} | {'PYTHONPATH': str(REPO)}
    command = [sys.executable, '-c', 'from reasonnb.lab.cli import app; app()', 'claims', '--json', '--log', 'sudoku_transformer']
    done = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True)
    rows = json.loads(done.stdout)
    assert done.returncode == 0 and len(rows) > 50 and {row['verdict'] for row in rows} <= {'holds', 'contradicted', 'undecided', 'not run'}
