"""The command line as a process: exit codes, one-line mistakes, and being stopped in the middle."""
import json, os, pty, re, signal, subprocess, sys
import pytest
from reasonnb.lab.claims import JUDGED, VERDICTS
from toy import REPO, cli, each, environment, kernels, make_root, start_cli, until


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


AT_ONCE = '''import sys
from typer.testing import CliRunner
from reasonnb.lab.cli import app
for words in (['--help'], ['list'], ['show', sys.argv[1]], ['solve', '--help']):
    assert CliRunner().invoke(app, words).exit_code == 0 or words[0] == 'solve', words
    heavy = {'torch', 'numba', 'scipy', 'matplotlib', 'papermill', 'nbclient', 'IPython'} & set(sys.modules)
    assert not heavy, (words, heavy)
    assert not {'pandas', 'numpy'} & set(sys.modules) or words[0] in ('show', 'solve'), words
'''


def test_answers_at_once(root):
    bare = {name: value for name, value in os.environ.items() if not name.startswith('REASONNB')}
    toy, package = ('fast', environment(root)), ('recur_add', {'PYTHONPATH': str(REPO)})
    for slug, env in (toy, package):
        command = [sys.executable, '-c', AT_ONCE, slug]
        done = subprocess.run(command, cwd=REPO, env=bare | env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


CLASSICAL = '''import sys
from reasonnb.sudoku.board import BoardShape, is_solved, is_valid, to_text
from reasonnb.sudoku.generator import generate
from reasonnb.sudoku.refutation import few_solutions
from reasonnb.sudoku.solver import prove, rate
for box in (BoardShape(2, 2), BoardShape(3, 3)):
    puzzles, answers = generate(2, box)
    assert (prove(puzzles, box)[0] == answers).all() and rate(puzzles, box).shape == (2,)
    assert is_valid(puzzles, box).all() and is_solved(answers, box).all() and to_text(puzzles[0], box)
    assert few_solutions(puzzles[0], box) == 1
print({'torch', 'pandas', 'matplotlib'} & set(sys.modules))
'''


def test_the_classical_solver_loads_no_torch():
    done = subprocess.run([sys.executable, '-c', CLASSICAL], cwd=REPO, capture_output=True, text=True)
    assert done.stdout == 'set()\n', done.stderr


def test_commands_come_with_the_systems(root):
    code, out, err = cli(root, '--help')
    assert code == 0 and 'sweep' in out and 'benchmark ' not in out
    code, out, err = cli(root, 'solve', '1')
    assert code == 2 and "No such command 'solve'" in err
    code, out, err = cli(root, '--help', REASONNB_SYSTEMS='toy_system,reasonnb.systems.lattice.experiments')
    assert code == 0 and re.search('docs .*\n +solve .*\n +benchmark ', out)
    for words in (['--help'], ['list']):
        said = "reasonnb: no module 'toy_sytem' for a system; check REASONNB_SYSTEMS\n"
        assert cli(root, *words, REASONNB_SYSTEMS='toy_sytem') == (2, '', said)


MISTAKES = [
    (['run', 'fsat'], "unknown experiment 'fsat': did you mean 'fast'?"),
    (['run', 'a_plan'], "'a_plan' (toy_log, plan) has no configuration yet"),
    (['run', 'fast', '--scale', 'smoek'], "unknown scale 'smoek': did you mean 'smoke'?"),
    (['run', 'fast', '--set', 'rte=1'], "unknown field of ToyConfig 'rte': did you mean 'rate'?"),
    (['run', 'fast', '--set', 'rate=much'], "rate='much': expected float"),
    (['run', 'fast', '--set', 'rate'], 'expected name=value'),
    (['run', 'fast', '--seed', '-3'], 'seed=-3: must not be negative'),
    (['run', 'fast', '--seed', '5000000000'], 'seed=5000000000: must be at most 4294967295'),
    (['run', 'fast', '--set', 'device=gpu'], "device='gpu': expected one of 'auto', 'cpu', 'cuda', 'mps'"),
    (['run', 'fast', '--set', 'device=mps'], "device='mps' is not available here"),
    (['run', 'fast', '--timeout', 'nan'], 'timeout: nan is not a number of seconds'),
    (['run', 'fast', '--timeout', '-1', '--dry-run'], 'timeout: -1.0 is not a number of seconds'),
    (['sweep', 'bth.yaml'], 'no sweep file bth.yaml; there are both.yaml in nbs/jobs'),
    (['sweep', 'nbs/jobs'], 'sweep file nbs/jobs: Is a directory'),
    (['sweep', 'latin.yaml'], 'latin.yaml line 2 is not UTF-8 text'),
    (['list', '--log', 'other'], "unknown log 'other'"),
    (['results', '--log', 'other'], "unknown log 'other'"),
]


def test_mistakes_are_one_line(root):
    (root/'latin.yaml').write_bytes('experiments: [fast]\n# für später\n'.encode('latin-1'))
    answers = each(root, *((words, '') for words, _ in MISTAKES))
    for (words, message), (code, out, err) in zip(MISTAKES, answers, strict=True):
        assert (code, out) == (2, ''), (words, err)
        assert err.startswith('reasonnb: ') and message in err and err.count('\n') == 1, (words, err)
    assert not folder(root, 'fast').exists()


def test_streams_and_files_that_fail_are_one_line(root, tmp_path_factory):
    words = [
        (['list'], 'gone'),
        (['list'], '/dev/full'),
        (['show', 'fast', '--json'], '/dev/full'),
        (['--help'], 'gone'),
        (['run', '-h'], '/dev/full'),
    ]
    gone, full, shown, helped, explained = each(root, *words)
    assert gone == (141, '', '')  # as in `reasonnb list | head -1`
    assert helped[0] and helped[1:] == ('', '')
    advice = 'free some space and give the same command again'
    disk_is_full = (1, '', f'reasonnb: the disk is full (while writing); {advice}\n')
    assert full == shown == explained == disk_is_full
    torn = make_root(tmp_path_factory.mktemp('torn')).resolve()
    table = torn/'data'/'logs'/'sections.csv'
    table.write_bytes(table.read_bytes() + 'toy_log,7,Über,later,plan,,,,\n'.encode('latin-1'))
    assert each(torn, (['list'], '')) == [(2, '', f'reasonnb: {table} is not UTF-8 text\n')]
    table.unlink()
    table.mkdir()
    assert each(torn, (['list'], '')) == [(2, '', f'reasonnb: {table}: Is a directory\n')]


def test_closed_streams(root):
    def said(closed, cwd, env, *words):
        words = [sys.executable, '-c', 'from reasonnb.lab.cli import app; app()', *words]
        shell = ['sh', '-c', f'exec "$@" {closed}', 'sh', *words]
        done = subprocess.run(shell, cwd=cwd, env=os.environ | env, capture_output=True, text=True)
        return done.returncode, done.stderr
    code, err = said('<&-', REPO, {'PYTHONPATH': str(REPO)}, 'solve', '-')
    assert code in (1, 2) and err.startswith('reasonnb: ') and err.count('\n') == 1  # there is no puzzle
    refused = (1, 'reasonnb: standard output: closed; give it a file, or /dev/null\n')
    assert said('>&-', root, environment(root), 'list') == refused
    assert said('<&- 2>&-', root, environment(root), 'list') == (0, '')


def test_an_error_of_the_program_keeps_its_traceback(root):
    code = '''from reasonnb.lab.terminal import program
def broken(): return {}["no such key"]
program([broken])(["broken"])'''
    env = os.environ | environment(root)
    done = subprocess.run([sys.executable, '-c', code], cwd=root, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and "KeyError: 'no such key'" in done.stderr and 'Traceback' in done.stderr


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
    assert 'ok fast smoke s5 rate=0.2' in err and 'KILLED fast smoke s5 trouble=always_kill' in err
    assert '1 of 2 runs finished' in err
    assert 'rate=0.2' in out and 'always_kill' not in out
    code, out, err = cli(root, 'sweep', str(file), '--dry-run')
    assert code == 0 and out.count('run fast --scale smoke --seed 5 --set') == 2


SLOW = ['--set', 'pause=0.05', '--set', 'steps=60']


def step(run_folder):
    try: return (run_folder/'unfinished'/'metrics.jsonl').read_text().count('\n')
    except OSError: return 0


def place_of(root, seed):
    "The folder of a slow run, once it has done some steps."
    found = []
    def going():
        found[:] = folder(root, 'start').glob(f'smoke-s{seed}-*')
        return found and step(found[0]) > 5
    until(going)
    return found[0]


@pytest.mark.parametrize('number, code', [(signal.SIGINT, 130), (signal.SIGKILL, -9)], ids=['ctrl-c', 'kill -9'])
def test_stopped_in_the_middle_nothing_is_lost(root, number, code):
    seed = int(number)
    process = start_cli(root, 'run', 'start', '--seed', str(seed), *SLOW)
    place = place_of(root, seed)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code and 'Traceback' not in err
    if code == 130: assert '0 of 1 runs finished; nothing is lost, the same command goes on from here' in err
    until(lambda: not kernels(place), 20)
    assert (place/'unfinished'/'checkpoint.pt').exists() and not (place/'record.json').exists()
    reached = step(place)
    code, out, err = cli(root, 'run', 'start', '--seed', str(seed), *SLOW, '--json')
    found = json.loads(out)[0]
    assert code == 0 and found['resumed'] >= reached - 1
    assert f'from step {found["resumed"]}' in err
    rows = [json.loads(line)['step'] for line in (place/'metrics.jsonl').read_text().splitlines()]
    assert max(rows) == 60 and json.loads((place/'record.json').read_text())['start'] >= reached - 1


def test_a_run_deaf_to_the_interrupt_is_stopped_by_term_and_paints_nothing_on_a_dumb_terminal(root):
    "As `reasonnb run ... &` in a script, on a terminal that knows no escape codes."
    master, slave = pty.openpty()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited
    try:
        words = ['run', 'start', '--seed', '15', '--set', 'pause=0.05', '--set', 'steps=10000']
        command = [sys.executable, '-c', 'from reasonnb.lab.cli import app; app()', *words]
        env = os.environ | environment(root) | {'TERM': 'dumb'}
        process = subprocess.Popen(command, cwd=root, env=env, stdin=slave, stdout=slave, stderr=slave)
    finally: signal.signal(signal.SIGINT, before)
    os.close(slave)
    place, said = place_of(root, 15), []
    process.send_signal(signal.SIGINT)
    reached = step(place)
    until(lambda: step(place) > reached + 5)
    process.send_signal(signal.SIGTERM)
    process.wait(20)
    while True:
        try: said.append(os.read(master, 65536))
        except OSError: break  # all is read
        if not said[-1]: break
    os.close(master)
    until(lambda: not kernels(place), 20)
    text = b''.join(said).decode()
    assert process.returncode == 130 and '0 of 1 runs finished' in text and 'start start smoke s15' in text
    assert '\x1b' not in text and '\r' not in text.replace('\r\n', '')
    log = (place/'unfinished'/'run.ipynb').read_text()
    assert (place/'unfinished'/'checkpoint.pt').exists() and 'KeyboardInterrupt' in log  # asked, not forced


def test_claims_of_the_repository_for_a_program():
    env = {name: value for name, value in os.environ.items() if not name.startswith('REASONNB')}
    env['PYTHONPATH'] = str(REPO)
    words = ['claims', '--json', '--log', 'sudoku_transformer']
    command = [sys.executable, '-c', 'from reasonnb.lab.cli import app; app()', *words]
    done = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True)
    rows = json.loads(done.stdout)
    assert done.returncode == 0 and len(rows) > 50
    assert {row['verdict'] for row in rows} <= set(VERDICTS)
    assert all(row['reason'] for row in rows if row['verdict'] in ('cannot show', 'not run'))
    assert all(row['tested'] for row in rows if row['verdict'] in JUDGED)
