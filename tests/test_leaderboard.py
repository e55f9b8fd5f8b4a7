"""The record table: its numbers are those of committed records, its rule works both ways, attempts leave git clean."""
import json, math, os, shutil, subprocess, sys
from dataclasses import asdict, replace
import numpy as np
import pytest
from reasonnb.core.config import UserError
from reasonnb.core.own import read_record
from reasonnb.core.records import read_json
from reasonnb.lab.leaderboard import comparable_seconds, judge, record_of, record_table, shown_table
from toy import REPO, each

TASKS, ROWS = record_table()


def committed(row): return [read_record(REPO/row.source.format(seed=seed)) for seed in row.seeds]


def rows(test): return [row for row in ROWS if TASKS[row.task].test == test]


@pytest.mark.parametrize('row', rows('welch'), ids=lambda row: f'{row.task}-{row.experiment}')
def test_rows_are_what_their_records_say(row):
    task, records = TASKS[row.task], committed(row)
    for seed, record in zip(row.seeds, records):
        assert (record['experiment'], record['scale'], record['seed']) == (row.experiment, row.scale, seed)
        assert all(record[name] == getattr(row, name) for name in ('params', 'flop_per_item', 'protocol'))
        assert record['metrics'].get('n_test', row.n_test) == row.n_test
        assert all(record['metrics'][name] >= least for name, least in task.at_least.items())
        assert all(record['metrics'][name] <= most for name, most in task.at_most.items())
    assert row.date == min(record['finished'] for record in records)[:10]
    if task.metric == 'seconds':
        assert row.clock == 'CPU' and len(row.values) == len(row.seeds)
        seconds = [comparable_seconds(*pair) for pair in zip(row.cpu_seconds, row.reference, strict=True)]
        assert row.values == pytest.approx(seconds, rel=1e-3)
        assert row.seconds == pytest.approx(np.mean(row.cpu_seconds), abs=.1)
    else:
        assert row.values == pytest.approx([record['metrics'][task.metric] for record in records], abs=1e-9)
        assert row.clock == 'wall'
        assert row.seconds == pytest.approx(np.mean([record['seconds'] for record in records]), abs=.1)


@pytest.mark.parametrize('row', rows('boards'), ids=lambda row: row.task)
def test_lists_are_what_the_benchmark_measured(row):
    report = read_json(REPO/row.source)
    weights = read_json(REPO/f"data/checkpoints/{report['settings']['checkpoint']}.json")
    tier, run = report['tiers'][row.task], weights['run']
    assert ([tier['solved']], tier['n'], tier['wrong'], tier['flop']) == (row.values, row.n_test, 0, row.flop_per_item)
    assert (report['params'], report['protocol']) == (row.params, row.protocol)
    assert [weights['seed']] == row.seeds and run['finished'].startswith(row.date)
    assert all(run[name] == getattr(row, name) for name in ('experiment', 'scale', 'seconds'))


@pytest.mark.parametrize('name', [name for name, task in TASKS.items() if task.fixed])
def test_the_record_to_beat_has_the_settings_that_its_task_fixes(name):
    task, row = record_of(name)
    for record in committed(row): assert {field: record['config'][field] for field in task.fixed} == task.fixed


@pytest.mark.parametrize('name', TASKS)
def test_the_rule_refuses_and_accepts(name):
    task, old = record_of(name)
    met = dict(task.at_least) | dict(task.at_most) | {'n_test': old.n_test}
    best, sign = (max, 1) if task.better == 'higher' else (min, -1)
    if task.test == 'boards': old = replace(old, values=[old.values[0] // 2])  # a list at its ceiling needs more boards
    same = {seed: old.values[seed % len(old.values)] for seed in range(3)}
    assert not judge(task, old, same, [met] * 3).record
    lead = 20 * np.std(old.values) + abs(.3 * np.mean(old.values))
    ahead = {seed: best(old.values) + sign * lead + seed * 1e-3 for seed in range(3)}
    if task.test == 'boards': ahead = {seed: old.n_test for seed in range(3)}
    assert judge(task, old, ahead, [met] * 3).record
    broken = {name: value - .001 for name, value in task.at_least.items()}
    broken |= {name: value + .001 for name, value in task.at_most.items()}
    for name, value in broken.items():
        assert 'in every seed' in judge(task, old, ahead, [met, met, met | {name: value}]).text
    for name in broken:  # what was not measured is not met
        assert 'in every seed' in judge(task, old, ahead, [met, met, {k: v for k, v in met.items() if k != name}]).text
    assert 'without a gap' in judge(task, old, {seed + 1: value for seed, value in ahead.items()}, [met] * 3).text
    assert 'at least 3' in judge(task, old, {0: ahead[0], 1: ahead[1]}, [met] * 2).text
    if task.metric != 'seconds': return
    assert 'nobody killed' in judge(task, old, ahead | {2: math.nan}, [met] * 3).text
    close = judge(task, replace(old, values=[100., 100.1, 100.2]), {0: 90., 1: 90.1, 2: 90.2}, [met] * 3)
    assert close.p < 1e-6 and not close.record and 'repeated on this machine' in close.text


def workplace(place):
    "What a run needs of the repository, committed."
    for part in ('nbs/jobs', 'data/logs'): shutil.copytree(REPO/part, place/part)
    for name in ('data/records.json', 'settings.ini', '.gitignore'): shutil.copy(REPO/name, place/name)
    for words in (['init', '-q'], ['add', '-A'], ['-c', 'user.name=a', '-c', 'user.email=a@b', 'commit', '-qm', 'all']):
        subprocess.run(['git', *words], cwd=place, check=True)
    return place


@pytest.fixture(scope='module')
def place(tmp_path_factory): return workplace(tmp_path_factory.mktemp('place')).resolve()


def environment(place):
    return {'REASONNB_ROOT': str(place), 'REASONNB_DATA': str(place/'data'), 'PYTHONPATH': str(REPO),
            'OMP_NUM_THREADS': '1'}


def speedrun(place, *words):
    "Exit code, standard output and standard error of the command."
    command = [sys.executable, '-m', 'reasonnb', 'speedrun', *words]
    env = os.environ | environment(place)
    done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_speedrun_gives_a_verdict_and_leaves_git_clean(place):
    code, out, err = speedrun(place, 'sixes', '--scale', 'smoke')
    assert code == 0, err
    row, verdict = out.splitlines()[1], out.splitlines()[-1]
    assert verdict.startswith('record: no, p unknown, needs scale laptop (this is smoke); ')
    assert 'puzzle_accuracy of at least 1 in every seed' in verdict
    assert 'of 40' in row and 'unknown' not in row and 'to beat: ' in out
    [folder] = (place/'papermill_runs/own').rglob('smoke-s0')
    found = json.loads((folder/'time.json').read_text())
    assert found['whole'] and found['step'] == 20 and len(found['reference']) == 20 and found['cpu_seconds'] > 0
    assert subprocess.run(['git', 'status', '--porcelain'], cwd=place, capture_output=True, text=True).stdout == ''
    code, again, err = speedrun(place, 'sixes', '--scale', 'smoke')
    assert (code, again) == (0, out) and 'finished earlier' in err


MISTAKES = [
    ('six', "'six'"),
    ('sixes --seeds all', '--seeds all'),
    ('sixes --seeds 0,0', 'each seed once'),
    ('se11', 'reasonnb benchmark'),
    ('sixes --set test_puzzles=10', 'fixes it at 10000'),
    ('sixes --set stepz=10', 'stepz'),
    ('sixes --scale huge', 'huge'),
    ('sixes --budget -1', '-1'),
]


@pytest.fixture(scope='module')
def answers(place):
    "What the command says to each mistake."
    cases = [(['speedrun', *words.split()], '') for words, _ in MISTAKES]
    needed = ('reasonnb.lab.leaderboard', 'reasonnb.lab.runcommands', 'reasonnb.lab.sweeps')
    return dict(zip(MISTAKES, each(place, *cases, env=environment(place), needed=needed), strict=True))


@pytest.mark.parametrize('words, said', MISTAKES)
def test_mistakes_are_one_line(answers, words, said):
    code, out, err = answers[words, said]
    assert code == 2 and out == '' and said in err and err.count('\n') == 1, err


def test_an_entry_with_a_mistake_is_named(place, monkeypatch):
    monkeypatch.setenv('REASONNB_ROOT', str(place))
    path = place/'data'/'records.json'
    before = path.read_text()
    row = asdict(ROWS[0])
    try:
        for broken, said in ((row | {'seedz': 1}, 'seedz'), ({key: row[key] for key in row if key != 'how'}, "'how'")):
            path.write_text(json.dumps({'tasks': {}, 'records': [broken]}))
            os.utime(path, ns=(0, hash(said) % 10**15))
            with pytest.raises(UserError, match=said): record_table()
    finally: path.write_text(before)


def test_the_page_shows_the_table_as_it_is():
    cells = json.loads((REPO/'nbs'/'records.ipynb').read_text())['cells']
    outputs = [output for cell in cells if cell['cell_type'] == 'code' for output in cell['outputs']]
    shown = ' '.join(''.join(output['data']['text/markdown']) for output in outputs)
    for _, row in shown_table().iterrows(): assert all(row[name] in shown for name in ('record', 'how', 'experiment'))
