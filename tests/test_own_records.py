"""Whose records: a run changes nothing that git keeps; reference and own runs are read, shown and reported apart."""
import json, os, shutil, subprocess, sys
from dataclasses import replace
import pytest
from typer.testing import CliRunner
from reasonnb.core.config import UserError
from reasonnb.core.own import own_folder, read_record, weights
from reasonnb.lab import catalogue, report
from reasonnb.lab.adopt import adopt
from reasonnb.lab.cli import app
from reasonnb.lab.results import load_records
from reasonnb.lab.runs import plan
from toy import REPO, environment, shared_root

CLAIMS = """log,claim_id,statement,left,relation,right,metric,margin,note
toy_log,fast_lower,A larger rate ends lower,fast,<,start,loss,,measured: once
"""
REPORTED = "log,slug,split,at,metric,value,unit,of\ntoy_log,start,,final,loss,0.25,,\n"


@pytest.fixture
def root(monkeypatch):
    "The toy repository with two claims' worth of tables and without any records."
    root = shared_root()
    for name, value in environment(root).items(): monkeypatch.setenv(name, value)
    for name in ('REASONNB_RECORDS', 'REASONNB_WRITE'): monkeypatch.delenv(name, raising=False)
    (root/'data/logs/claims.csv').write_text(CLAIMS)
    (root/'data/logs/reported.csv').write_text(REPORTED)
    for name in ('papermill_runs', 'figures'): shutil.rmtree(root/name, ignore_errors=True)
    yield root
    for name in ('papermill_runs', 'figures'): shutil.rmtree(root/name, ignore_errors=True)
    for name in ('claims', 'reported'): (root/f'data/logs/{name}.csv').unlink()


def write(run, loss, folder=None, **more):
    "The record that a run would leave, without the run."
    changes = dict(part.split('=') for part in run.overrides.split())
    config = catalogue.resolve(run.experiment, run.scale, seed=run.seed, **changes).to_dict()
    record = dict(
        id=run.id,
        log=run.log,
        experiment=run.experiment,
        scale=run.scale,
        seed=run.seed,
        config=config,
        metrics={'loss': loss},
        curve=[],
        params=1,
        data='none',
        protocol='none',
        flop_per_item=4,
        seconds=.1,
        steps=run.config.steps,
        finished='2026-01-01T00:00:00+00:00',
    )
    folder = folder or run.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder/'record.json').write_text(json.dumps(record | more))
    if folder == run.folder: (folder/'status.json').write_text(json.dumps({'status': 'ok', 'id': run.id}))
    return run


def reference(run): return own_folder().parent/run.folder.relative_to(own_folder())


def shell(*words):
    "Exit code, standard output and standard error of a command, in this process."
    said = CliRunner().invoke(app, list(words))
    assert said.exception is None or isinstance(said.exception, SystemExit), said.exception
    return said.exit_code, said.stdout, said.stderr


def populate(scale='laptop'):
    "Three seeds of two experiments as reference; own runs say the opposite of one, and add a third with a change."
    for seed in range(3):
        for slug, loss in (('start', .5), ('fast', .1)):
            run = plan(slug, scale, seed)
            more = (seed if slug == 'start' else (1, 0, 2)[seed])/100  # no pair is quite like another
            write(run, loss + more, reference(run))
            write(run, .6 - loss + more)
    write(plan('start', scale, 0, 'rate=0.2'), .3)


def test_reference_and_own_stand_side_by_side(root):
    populate()
    code, out, err = shell('results', '--metric', 'loss', '--json')
    rows = {(row['experiment'], row['changes']): row for row in json.loads(out)}
    assert code == 0 and err == '' and len(rows) == 3
    assert (rows['start', '']['mean'], rows['start', '']['n']) == (pytest.approx(.51), 3)
    assert (rows['start', '']['own_mean'], rows['start', '']['own_n']) == (pytest.approx(.11), 3)
    changed = rows['start', 'rate=0.2']
    assert (changed['mean'], changed['n'], changed['own_mean']) == (None, 0, .3)
    assert rows['start', '']['log_value'] == .25
    head = shell('results', '--metric', 'loss')[1].splitlines()[0].split()
    assert head[5:13] == ['mean', 'low', 'high', 'n', 'own_mean', 'own_low', 'own_high', 'own_n']
    alone = {}
    for side in ('reference', 'own'):
        out = shell('results', '--metric', 'loss', '--records', side, '--json')[1]
        alone[side] = json.loads(out)
    assert [row['n'] for row in alone['reference']] == [3, 3] and [row['n'] for row in alone['own']] == [3, 3, 1]
    assert 'own_mean' not in alone['own'][0]

    claim, = json.loads(shell('claims', '--json')[1])
    assert (claim['verdict'], claim['own_verdict'], claim['own_n_left']) == ('holds', 'contradicted', 3)
    assert 'own_verdict' in shell('claims')[1] and 'by your runs' in shell('claims')[1]
    assert json.loads(shell('claims', '--records', 'own', '--json')[1])[0]['verdict'] == 'contradicted'

    counts = {row['slug']: (row['runs'], row['own']) for row in json.loads(shell('list', '--json')[1])}
    assert (counts['start'], counts['fast'], counts['faster']) == ((3, 4), (3, 3), (0, 0))
    text = shell('show', 'start', '--scale', 'laptop')[1]
    assert text.count('reference  papermill_runs/toy_log/start/') == 3
    assert text.count('yours      papermill_runs/own/toy_log/start/') == 4

    for words in (['results', '--records', 'mine'], ['claims', '--records', 'owm']):
        code, out, err = shell(*words)
        assert code == 2 and out == ''
        assert err.startswith('reasonnb: unknown value of --records') and err.count('\n') == 1


def test_a_claim_that_cannot_be_shown_says_why_on_a_line_that_nothing_cuts(root):
    (root/'data/logs/claims.csv').write_text(CLAIMS + 'toy_log,itself,A run beats itself,start,<,start,loss,,derived\n')
    populate()
    why = 'both sides have the same configuration at this scale'
    lines = shell('claims')[1].splitlines()
    place = lines.index('cannot be shown at this scale')
    assert lines[place + 1] == f'  itself: {why}' and sum(line.startswith('itself ') for line in lines) == 1
    first, second = json.loads(shell('claims', '--json')[1])
    assert (second['verdict'], second['reason'], second['own_verdict']) == ('cannot show', why, 'cannot show')
    assert (first['tested'], first['reason']) == ('loss', '') and first['n_left'] == 3
    assert [row['claim_id'] for row in json.loads(shell('claims', '--judged', '--json')[1])] == ['fast_lower', 'itself']


def test_without_own_runs_the_tables_are_as_before_and_say_so(root):
    run = plan('start', 'laptop', 0)
    write(run, .5, reference(run))
    for words in (['results', '--metric', 'loss'], ['claims']):
        both, alone = shell(*words), shell(*words, '--records', 'reference')
        assert both[1] == alone[1] and 'own' not in both[1]
        assert both[2].startswith('no runs of your own yet') and alone[2] == ''
    assert json.loads(shell('results', '--metric', 'loss', '--json')[1])[0]['own_n'] == 0


def test_what_is_read_and_written_follows_two_variables(root, monkeypatch):
    populate()
    assert sorted(load_records()['metrics.loss'].round(2)) == [.1, .11, .12, .5, .51, .52]
    monkeypatch.setenv('REASONNB_RECORDS', 'own')
    assert len(load_records()) == 7 and load_records('reference')['path'].str.contains('/own/').sum() == 0
    monkeypatch.setenv('REASONNB_RECORDS', 'mine')
    with pytest.raises(UserError, match='REASONNB_RECORDS: unknown value'): load_records()


WRONG_TYPE = dict(experiment='start', scale='laptop', seed='one', metrics={'loss': .1})
BROKEN = {
    'a merge': '<<<<<<< HEAD\n{"seed": 1}\n=======\n{"seed": 2}\n>>>>>>> main\n',
    'empty': '',
    'torn': '{"experiment": "start", "scale": "lap',
    'a list': '[]',
    'wrong type': json.dumps(WRONG_TYPE),
    'no text': b'\xff\xfe\x00',
}


@pytest.mark.parametrize('content', BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize('side, mend', [
    ('reference', 'restore it from git'),
    ('own', 'delete it and run that experiment again'),
])
def test_a_broken_record_is_one_line_for_every_reader(root, monkeypatch, content, side, mend):
    populate()
    def nothing_is_run(runs, **_): return {run: {'status': 'busy'} for run in runs}
    monkeypatch.setattr('reasonnb.lab.sweeps.run_sweep', nothing_is_run)
    run = plan('start', 'laptop', 1)
    path = (reference(run) if side == 'reference' else run.folder)/'record.json'
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as failure: read_record(path)
    line = f'reasonnb: {failure.value}\n'
    assert line.startswith(f'reasonnb: {path}: not a readable record (')
    assert line.endswith(f'; {mend}\n') and line.count('\n') == 1
    readers = [
        (['show', 'start', '--scale', 'laptop'], 1),
        (['show', 'fast', '--scale', 'laptop'], 0),
        (['list'], 0),
        (['results', '--metric', 'loss'], 0),
        (['claims'], 0),
    ]
    for words, code in readers:
        found, out, err = shell(*words)
        asked_for_another = words[:2] == ['show', 'fast']
        assert (found, err.count(line)) == (code, 0 if asked_for_another else 1), (words, err)
        assert out and err.count('not a readable record') == (not asked_for_another)
    code, out, err = shell('run', 'start', '--scale', 'laptop', '--seed', '1')
    assert (code, err.count(line), err.count('not a readable')) == (1, *[int(side == 'own')]*2)


def test_adopt_is_the_way_to_the_reference(root):
    populate()
    (root/'figures').mkdir()
    (root/'figures'/'ledger.csv').write_text('old')
    write(plan('fast', 'smoke', 0), .2)
    write(plan('fast', 'laptop', 5), .2, id='000000000000')  # of other code
    write(plan('faster', 'laptop', 0), .1, own_folder()/'notebook'/'faster'/'laptop-s0')
    before = {path: path.read_bytes() for path in own_folder().rglob('record.json')}
    code, out, err = shell('adopt', 'fast', '--scale', 'laptop')
    assert code == 0 and len(out.splitlines()) == 3 and 'loss 0.5; replaces 2026-01-01T00:00:00+00:00, loss 0.1' in out
    assert err.count('left: ') == 1 and 'smoke' not in err and 'made by other code' in err
    assert 'fast_lower' in (root/'figures'/'ledger.csv').read_text()
    code, out, err = shell('adopt')
    assert code == 0 and len(out.splitlines()) == 3 and 'start/laptop-s0/' in out
    reasons = [
        'made in a notebook',
        'a try with rate=0.2; name start',
        'no runs of scale smoke',
        'made by other code',
    ]
    for reason in reasons:
        assert err.count(reason) == 1, (reason, err)
    assert len(adopt(['start'])[0]) == 1
    assert reference(plan('start', 'laptop', 0, 'rate=0.2')).joinpath('record.json').exists()
    assert [path.name for path in reference(plan('fast', 'laptop', 0)).iterdir()] == ['record.json']
    # nothing of one's own is moved
    assert {path: path.read_bytes() for path in own_folder().rglob('record.json')} == before
    code, out, err = shell('adopt', 'fast', '--scale', 'smoke')
    assert (code, err) == (2, 'reasonnb: git keeps no runs of scale smoke; adopt runs of another scale\n')
    assert shell('adopt', 'faster')[0] == 1 and shell('adopt', 'fsat')[0] == 2


def test_weights_are_those_of_the_very_run(root):
    "A reference record has the weights of the own run that it was, until that folder holds another run."
    run = write(plan('start', 'laptop', 0), .4)
    write(run, .4, reference(run))
    assert weights(reference(run)) is None
    (run.folder/'checkpoint.pt').write_text('')
    assert weights(reference(run)) == weights(run.folder) == run.folder/'checkpoint.pt'
    write(run, .3, id='another')
    assert weights(reference(run)) is None and weights(run.folder) is not None


def test_a_report_is_on_the_runs_of_its_sweep(root, monkeypatch):
    populate()
    losses = {'rate=0.2': (.3, .4), 'rate=0.25': (.2, .1)}
    tries = [write(plan('start', 'laptop', seed, change), loss)
             for change, values in losses.items()
             for seed, loss in enumerate(values)]
    found, = report.report('tries', tries)  # changes only: no catalogued run enters
    assert found.table['changes'].tolist() == ['rate=0.2', 'rate=0.25']
    assert found.table['own_mean'].tolist() == pytest.approx([.35, .15])
    assert found.table['n'].tolist() == [0, 0] and found.verdicts.empty
    assert found.table_path == own_folder()/'figures'/'toy_log'/'tries.md'
    assert 'start rate=0.25' in found.table_path.read_text()
    assert 'Loss: start rate=0.25 0.15, start rate=0.2 0.35' in report._finding(found.table, True)

    full = [plan(slug, 'laptop', seed) for slug in ('start', 'fast') for seed in range(3)]
    found, = report.report('full', full)
    assert found.table['experiment'].tolist() == ['start', 'fast'] and found.table['n'].tolist() == [3, 3]
    assert found.verdicts[['verdict', 'reference']].values.tolist() == [['contradicted', 'holds']]
    assert '0.51 (' in found.text() and 'figure     papermill_runs/own/figures/toy_log/full.svg' in found.text()
    assert '0.11 (' not in report.report('few', full[:1])[0].text()  # other seeds of one's own stay out

    both = report.report('both', [*full[:1], write(plan('start', 'smoke'), .7)])
    assert [part.table_path.name for part in both] == ['both-laptop.md', 'both-smoke.md']
    monkeypatch.setenv('REASONNB_WRITE', 'reference')
    found, = report.report('full', full)
    assert found.table_path == root/'figures'/'toy_log'/'full.md'
    assert found.table['own_mean'].tolist() == pytest.approx([.51, .11])


def test_reports_of_every_system_by_its_own_metric(tmp_path, monkeypatch):
    "One sweep of three systems and two scales, from records as their trainers write them."
    # judged elsewhere; with all records it takes long
    monkeypatch.setattr(report, '_judged', lambda *_: report.pd.DataFrame())
    monkeypatch.delenv('REASONNB_WRITE', raising=False)
    metrics = {
        'baseline': {'loss': 1., 'puzzle_accuracy': .25, 'cell_accuracy': .9},
        'lattice': {'loss': 1., 'puzzle_accuracy': 1., 'moves': 9.},
        'equilibrium': {'loss': .3, 'accuracy': .9, 'test_accuracy': .875, 'validation_accuracy': .9},
    }
    runs = []
    plans = [
        ('baseline', 'smoke', ''),
        ('lattice', 'smoke', ''),
        ('equilibrium', 'smoke', ''),
        ('equilibrium', 'laptop', 'lr=0.5'),
    ]
    for slug, scale, change in plans:
        run = plan(slug, scale, 0, change)
        run = replace(run, folder=tmp_path/f'{slug}-{scale}')
        runs.append(write(run, 1., metrics=metrics[slug]))
    found = {part.table_path.stem: part for part in report.report('all', runs, out=tmp_path)}
    assert list(found) == ['all-looped-smoke', 'all-lattice-smoke', 'all-equilibrium-smoke', 'all-equilibrium-laptop']
    said = {name: (part.table['metric'].iloc[0], part.table['own_mean'].iloc[0]) for name, part in found.items()}
    assert list(said.values()) == [
        ('puzzle_accuracy', .25),
        ('puzzle_accuracy', 1.),
        ('test_accuracy', .875),
        ('test_accuracy', .875),
    ]
    assert found['all-equilibrium-laptop'].table['changes'].tolist() == ['lr=0.5']
    for part in found.values():
        assert 'boards' not in part.table_path.read_text()
        assert part.figure_path.stat().st_size > 1000


def test_figures_and_measurements_of_a_reader_go_beside_their_runs(root, tmp_path):
    import matplotlib.pyplot as plt
    from reasonnb.lab.claims import write_ledger
    from reasonnb.lab.figures import save
    fig, _ = plt.subplots()
    plt.close(fig)
    assert save(fig, 'toy_log/a.svg') == own_folder()/'figures'/'toy_log'/'a.svg'
    assert save(fig, tmp_path/'b.svg') == tmp_path/'b.svg'
    assert write_ledger() == own_folder()/'figures'/'ledger.csv' and not (root/'figures').exists()


CLONE = '''
import json, subprocess, sys
from pathlib import Path
from typer.testing import CliRunner
from reasonnb.lab.cli import app
from reasonnb.lab.results import load_records
import matplotlib.pyplot as plt
from reasonnb.lab.figures import save
from reasonnb.systems.lattice.benchmark import report_path
from reasonnb.systems.lattice.neural_solver import load_solver
from reasonnb.sudoku.board import BoardShape
def dirty(): return subprocess.run(['git', 'status', '--porcelain'], capture_output=True, text=True).stdout
def shell(*words):
    said = CliRunner().invoke(app, list(words))
    assert said.exit_code == 0, (words, said.stdout, said.stderr)
    return said.stdout
def numbers():
    judged = shell('claims', '--log', 'equilibrium', '--records', 'reference', '--json')
    return judged, load_records()['record'].tolist()
before = numbers()
report = shell('sweep', sys.argv[1], '--report', '--slots', '1')
assert 'test accuracy, %' in report and 'papermill_runs/own/figures/equilibrium/small.svg' in report, report
save(plt.figure(), 'equilibrium/beta.svg')
assert 'own' in report_path(load_solver(BoardShape(2, 3))).parts
assert numbers() == before and len(load_records('own')) == 1
assert dirty() == '', dirty()
'''


@pytest.mark.skipif(not shutil.which('git'), reason='needs git')
def test_a_sweep_in_a_clone_leaves_it_clean(tmp_path):
    "A smoke run with its report, from the command line, in a clone of what is here now."
    clone, git = tmp_path/'clone', ['git', '-c', 'user.name=a', '-c', 'user.email=a@b']
    listed = subprocess.run(['git', 'ls-files', '-coz', '--exclude-standard'], cwd=REPO, capture_output=True, text=True)
    if listed.returncode: pytest.skip('not a clone')
    for name in filter(None, listed.stdout.split('\0')):
        if not (REPO/name).is_file(): continue
        (clone/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPO/name, clone/name)
    subprocess.run([*git, 'init', '-q'], cwd=clone, check=True)
    subprocess.run([*git, 'add', '-A'], cwd=clone, check=True)
    subprocess.run([*git, 'commit', '-qm', 'all'], cwd=clone, check=True)
    (tmp_path/'small.yaml').write_text('experiments: [eq_ref_no_dropout]\n')
    env = {name: value for name, value in os.environ.items() if not name.startswith('REASONNB')}
    env |= {'PYTHONPATH': str(clone), 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'agg'}
    command = [sys.executable, '-c', CLONE, str(tmp_path/'small.yaml')]
    done = subprocess.run(command, cwd=clone, env=env, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
