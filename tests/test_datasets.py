"Data sets: every published layout, faulty lines, two processes at once, kills, a full disk, nine million rows."
import gzip, json, os, re, signal, subprocess, sys, textwrap, time, warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from reasonnb.core.config import UserError
from reasonnb.core.paths import data_folders, writable
from reasonnb.sudoku import datasets, formats
from reasonnb.sudoku.board import BoardShape, agrees, is_solved, to_lines
from reasonnb.sudoku.conversion import convert
from reasonnb.sudoku.datasets import find, load
from reasonnb.sudoku.formats import read_chunks
from reasonnb.sudoku.generator import generate
from reasonnb.sudoku.listreport import FAULTS, Report
from reasonnb.sudoku.puzzle_set import PuzzleSet, split_by_class
from reasonnb.sudoku.reading import Reader
from reasonnb.sudoku.symmetry import grid_class, random_symmetry
from reasonnb.sudoku.tables import LAYOUTS

READ_BLOCKS = formats.read_blocks
NINE, SIX, FOUR = BoardShape(3, 3), BoardShape(2, 3), BoardShape(2, 2)
LISTS = next((f / 'sudoku' for f in data_folders() if (f / 'sudoku' / 'clue17.csv').exists()), None)
needs_lists = pytest.mark.skipif(LISTS is None, reason='the public lists are not here')


@pytest.fixture(scope='module')
def boards():
    "A few hundred 9x9 puzzles with their solutions, as lines."
    puzzles, solutions = generate(300, NINE, seed=3)
    return to_lines(puzzles, NINE), to_lines(solutions, NINE)


def quiet_load(*args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return load(*args, **kwargs)


def script(code, *args, **kwargs):
    "Start Python on a piece of code."
    return subprocess.Popen([sys.executable, '-c', textwrap.dedent(code), *map(str, args)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, env=os.environ | dict(OMP_NUM_THREADS='1'), **kwargs)


def finished(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


# formats

def layouts(puzzles, solutions):
    "The same boards in every layout."
    zeros = [p.replace('.', '0') for p in puzzles]
    both = list(enumerate(zip(puzzles, solutions)))
    plain = [f'{z},{s}' for z, s in zip(zeros, solutions)]
    rows = {
        'source,question,answer,rating': [f'forum,{p},{s},{i % 60}' for i, (p, s) in both],
        'id,puzzle,solution,clues,difficulty': [f'{i},{p},{s},24,{i / 40:.1f}' for i, (p, s) in both],
        'puzzle,solution': plain,
        'quizzes,solutions': plain,
        'question,answer,rating,grid_class': [f'{p},{s},{i % 60},ab12' for i, (p, s) in both],
    }
    return {name: [header, *rows[header]] for name, header in LAYOUTS.items()} | {'plain list': puzzles}


@pytest.mark.parametrize('name', [*LAYOUTS, 'plain list'])
@pytest.mark.parametrize('end', ['\n', '\r\n', 'gz'])
def test_every_layout_gives_the_same_set(name, end, boards, tmp_path):
    lines = layouts(*boards)[name]
    text = ('\n' if end == 'gz' else end).join(lines).encode()
    path = tmp_path / ('list.csv.gz' if end == 'gz' else 'list.csv')
    path.write_bytes(gzip.compress(text) if end == 'gz' else text)
    found = load(str(path), data=tmp_path)
    assert to_lines(found.puzzles, NINE) == boards[0] and to_lines(found.solutions, NINE) == boards[1]
    assert found.report.faulty == 0 and found.report.kept == found.report.rows == found.report.uniqueness_checked == 300
    assert found.report.sources[0]['layout'] == name and not np.isnan(found.ratings).any()
    if name in ('sudoku-extreme', 'public list'): assert (found.ratings == np.arange(300) % 60).all()
    if name == 'Kaggle 3M': assert np.allclose(found.ratings, [float(f'{i / 40:.1f}') for i in range(300)])
    assert (found.classes == grid_class(found.solutions, NINE)).all()


def test_the_hash_is_that_of_the_boards(boards, tmp_path):
    lines = layouts(*boards)
    hashes = set()
    for name in lines:
        (tmp_path / name).mkdir()
        (tmp_path / name / 'x.csv').write_text('\n'.join(lines[name]))
        hashes.add(load(str(tmp_path / name / 'x.csv'), data=tmp_path).hash)
    assert len(hashes) == 1
    (tmp_path / 'shorter.txt').write_text('\n'.join(boards[0][:299]))
    assert load(str(tmp_path / 'shorter.txt'), data=tmp_path).hash not in hashes


DAMAGE = dict( # puzzle, solution and rating -> a line that is a fault
    short=lambda p, s, r: f'{p[:-1]},{s},{r}',
    long=lambda p, s, r: f'{p}.,{s},{r}',
    letter=lambda p, s, r: f'{p[:40]}x{p[41:]},{s},{r}',
    no_answer=lambda p, s, r: p,
    blank_answer=lambda p, s, r: f'{p},,{r}',
    binary=lambda p, s, r: '\x01\xff,',
)
UNRATED = dict( # a faulty column beside it costs no board
    unrated=lambda p, s, r: f'{p},{s},',
    rating=lambda p, s, r: f'{p},{s},hard',
    wide=lambda p, s, r: f'{p},{s},{"9" * 40}x',
    extra=lambda p, s, r: f'{p},{s},{r},1',
    fewer=lambda p, s, r: f'{p},{s}',
)
HARMLESS = dict(
    plain=lambda p, s, r: f'{p},{s},{r}',
    quoted=lambda p, s, r: f'"{p}","{s}",{r}',
    spaced=lambda p, s, r: f' {p} ,{s} , {r}',
    signs=lambda p, s, r: f"{p.replace('.', '_')},{s},{r}.50",
    starred=lambda p, s, r: f"{p.replace('.', '*')},{s},{r}",
    comma=lambda p, s, r: f'{p},{s},"{r},50"',
)
NO_ROW = dict(empty=lambda p, s, r: '', comment=lambda p, s, r: '# remark, with commas')


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kinds=st.lists(st.sampled_from([*DAMAGE, *HARMLESS, *UNRATED, *NO_ROW]), min_size=1, max_size=60),
       block=st.sampled_from([300, 1 << 22]), last_newline=st.booleans())
def test_exactly_the_damaged_lines_are_reported(kinds, block, last_newline, boards, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, 'read_blocks', lambda path: READ_BLOCKS(path, block))
    lines, damaged, good, rated, words = ['question,answer,rating'], [], [], [], 0
    for i, kind in enumerate(['plain', *kinds]):
        make = (DAMAGE | HARMLESS | UNRATED | NO_ROW)[kind]
        lines.append(make(boards[0][i], boards[1][i], i % 7))
        if kind in DAMAGE: damaged.append(i + 2)
        if kind in HARMLESS | UNRATED: good.append(i)
        if kind in ('rating', 'wide'): words += 1
        rated.append(kind in HARMLESS)
    path = tmp_path / 'list.csv'
    path.write_text('\n'.join(lines) + '\n' * last_newline)
    report = Report()
    chunks = list(read_chunks(path, NINE, report))
    assert list(report.table().line) == damaged and report.rows == len(damaged) + len(good)
    assert [line for c in chunks for line in to_lines(c.puzzles, NINE)] == [boards[0][i] for i in good]
    assert [line for c in chunks for line in to_lines(c.answers, NINE)] == [boards[1][i] for i in good]
    assert [line for c in chunks for line in c.lines] == [i + 2 for i in good]
    assert [not np.isnan(r) for c in chunks for r in c.ratings] == [rated[i] for i in good]
    assert report.notes.get('rating that is no number', 0) == words
    assert all(report.table().reason.str.len() > 10)


def test_each_fault_is_named_with_file_line_and_reason(boards, tmp_path):
    p, s = boards
    clash = p[4][:0] + s[4][0] * 2 + p[4][2:]
    many = '.' * 60 + s[6][60:]
    other = s[7]
    (tmp_path / 'one.csv').write_text(f'puzzle,solution\n{p[0]},{s[0]}\n{clash},{s[4]}\n{p[5]},{s[5][:-1]}{s[5][-2]}\n')
    (tmp_path / 'two.csv').write_text(f'puzzle,solution\n{p[1]},{other}\n{many},{s[6]}\n{p[2]},{s[2]}\n{p[3]}\n')
    report = convert([tmp_path / 'one.csv', tmp_path / 'two.csv'], tmp_path)
    named = {(r.file, r.line): (r.fault, r.reason) for r in report.table().itertuples()}
    assert named[('one.csv', 3)] == ('impossible puzzle', f'clue {s[4][0]} stands twice in row 1')
    assert named[('one.csv', 4)] == ('wrong answer', 'the answer is not a full valid grid')
    assert named[('two.csv', 2)][0] == 'wrong answer' and 'changes the clue of cell' in named[('two.csv', 2)][1]
    assert named[('two.csv', 3)] == ('several solutions', 'at least 2 solutions')
    assert named[('two.csv', 5)] == ('malformed line', 'there is no answer beside the puzzle')
    assert len(named) == 5 and (report.rows, report.kept, report.faulty) == (7, 2, 5)
    assert to_lines(np.load(tmp_path / 'puzzles.npy'), NINE) == [p[0], p[2]] and sum(report.faults.values()) == 5


def test_faulty_rows_are_warned_about_and_kept_on_request(boards, tmp_path):
    p, s = boards
    rows = [f'{p[0]},{s[0]}', f'{p[1]},{s[2]}', f'{"." * 81},{s[3]}', f'{p[4]},{s[4]}']
    (tmp_path / 'list.csv').write_text('\n'.join(['puzzle,solution', *rows, '']))
    warning = r'list.csv: 2 of 4 rows kept.* 1 x wrong answer, 1 x several solutions \(first: list.csv line 3'
    for _ in range(2): # the cached set must warn as well
        with pytest.warns(UserWarning, match=warning):
            assert len(load(str(tmp_path / 'list.csv'), data=tmp_path)) == 2
    kept = quiet_load(str(tmp_path / 'list.csv'), data=tmp_path, keep_bad=True)
    assert [FAULTS[f] for f in kept.faults] == ['', 'wrong answer', 'several solutions', '']
    assert (kept.classes[[0, 3]] > 0).all() and kept.select(kept.faults == 0).faults.sum() == 0


def test_uniqueness_is_proven_for_a_sample_of_a_long_list(boards, tmp_path):
    many = '.' * 60 + boards[1][6][60:]
    rows = [f'{p},{s}' for p, s in zip(*boards)] + [f'{many},{boards[1][6]}']
    (tmp_path / 'list.csv').write_text('\n'.join(['puzzle,solution', *rows, '']))
    some = quiet_load(str(tmp_path / 'list.csv'), data=tmp_path, proofs=40)
    assert some.report.uniqueness_checked == 40 and np.isnan(some.ratings).sum() in (260, 261)
    assert len(some.buckets()['unrated']) == np.isnan(some.ratings).sum()
    all_of_it = quiet_load(str(tmp_path / 'list.csv'), data=tmp_path)
    assert all_of_it.report.faults == {'several solutions': 1} and len(all_of_it) == 300
    assert all_of_it.report.examples[0]['line'] == 302


NO_LISTS = { # contents of a file, and the message
    'empty': (b'', 'holds no puzzle'),
    'header': (b'puzzle,solution\n', 'holds no puzzle'),
    'people': (b'name,age\nann,7\n', "holds no puzzle of 3x3 boxes; 1 lines .* 'ann,7'"),
    'zip': (b'PK\x03\x04\0\0\0\0' * 50, 'is no text file but a zip archive'),
    'torn': (gzip.compress(bytes(range(32, 127)) * 9, mtime=0)[:60], 'fetch it again'),
    'six': (b'1' + b'.' * 35, 'not one line is a board of 3x3 boxes'),
}


@pytest.mark.parametrize('content, message', NO_LISTS.values(), ids=NO_LISTS) # the same ids in every process
def test_what_is_no_list_is_said_in_one_line(content, message, tmp_path):
    (tmp_path / 'list.csv').write_bytes(content)
    with pytest.raises(UserError, match=message) as error: load(str(tmp_path / 'list.csv'), data=tmp_path)
    left = [p for p in (tmp_path / 'cache').iterdir() if not p.name.endswith('.lock')]
    assert '\n' not in str(error.value) and not left


# splits

def as_tensor(column): return torch.from_numpy(np.array(column))


@pytest.mark.parametrize('box, n, share', [(FOUR, 400, 0.3), (SIX, 3000, 0.1), (SIX, 3000, 0.3), (NINE, 400, 0.2)])
def test_no_test_grid_is_equivalent_to_a_training_grid(box, n, share, tmp_path):
    puzzles = load('generated', box, n, data=tmp_path)
    copies = random_symmetry(box, n, torch.Generator().manual_seed(1))
    p, s = (a.numpy() for a in copies(as_tensor(puzzles.puzzles), as_tensor(puzzles.solutions)))
    both = PuzzleSet(
        np.concatenate([puzzles.puzzles, p]),
        np.concatenate([puzzles.solutions, s]),
        ratings=np.zeros(2 * n),
        classes=np.concatenate([puzzles.classes, grid_class(s, box)]),
        box=box,
        name='with symmetric copies',
    )
    shares = []
    for seed in range(5):
        train, test = split_by_class(both, share, seed)
        assert len(train) + len(test) == 2 * n and len(train) and len(test)
        moves = random_symmetry(box, len(test), torch.Generator().manual_seed(seed + 2))
        again = moves(torch.from_numpy(test.solutions)).numpy()
        assert not np.isin(grid_class(again, box), grid_class(train.solutions, box)).any()
        assert {x.tobytes() for x in test.solutions}.isdisjoint(x.tobytes() for x in train.solutions)
        shares.append(len(test) / (2 * n))
        same = split_by_class(both, share, seed)[1]
        assert same.hash == test.hash and (same.puzzles == test.puzzles).all()
    if box is not FOUR: assert np.abs(np.array(shares) - share).max() < 0.02
    if box is not FOUR: assert len({split_by_class(both, share, seed)[1].hash for seed in range(5)}) == 5


def toy(classes):
    "A set of empty boards with given classes."
    n = len(classes)
    empty = np.zeros((n, 16), np.uint8)
    return PuzzleSet(empty, empty, np.zeros(n), classes=classes, box=FOUR)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=30), st.floats(0.01, 0.99), st.integers(0, 5))
def test_split_comes_as_near_as_the_sizes_allow(sizes, share, seed):
    classes = np.repeat(np.arange(len(sizes), dtype=np.uint64) + 1, sizes)
    train, test = split_by_class(toy(classes), share, seed)
    assert len(train) and len(test) and set(train.classes).isdisjoint(test.classes)
    off, in_test = len(test) - share * len(classes), len(set(test.classes.tolist()))
    assert abs(off) <= max(sizes) / 2 or in_test == 1 or in_test == len(sizes) - 1


def test_a_growing_set_keeps_its_split():
    rng = np.random.default_rng(0)
    classes = rng.integers(1, 2**63, 5000).astype(np.uint64)
    small, large = (set(split_by_class(toy(c), 0.2)[1].classes.tolist()) for c in (classes[:4000], classes))
    moved = [c for c in classes[:4000].tolist() if (c in small) != (c in large)]
    assert len(moved) < 0.03 * 4000


# generated sets, cache, finding

def test_generated_sets_are_distinct_nested_and_cached(tmp_path):
    start = time.perf_counter()
    puzzles = load('generated', SIX, 20_000, data=tmp_path)
    assert time.perf_counter() - start < 60 and len(np.unique(puzzles.puzzles, axis=0)) == 20_000
    assert is_solved(puzzles.solutions, SIX).all() and agrees(puzzles.puzzles, puzzles.solutions).all()
    start = time.perf_counter()
    assert load('generated', SIX, 20_000, data=tmp_path).hash == puzzles.hash and time.perf_counter() - start < 1
    assert (load('generated', SIX, 500, data=tmp_path).puzzles == puzzles.puzzles[:500]).all()
    assert load('generated', SIX, 500, seed=1, data=tmp_path).hash != load('generated', SIX, 500, data=tmp_path).hash
    assert ((load('generated', SIX, 50, clues=20, data=tmp_path).puzzles > 0).sum(1) == 20).all()
    # 288 grids x 16 cells
    with pytest.raises(UserError, match=r'hardly more than 4,60\d different puzzles .* 5,000 were asked for'):
        load('generated', FOUR, 5_000, clues=15, data=tmp_path)


TWO = """
    import json, sys, time
    from pathlib import Path
    from reasonnb.core import locks
    from reasonnb.sudoku import datasets
    from reasonnb.sudoku.board import BoardShape
    folder, lock = Path(sys.argv[1]), sys.argv[2] == 'lock'
    if not lock: locks.fcntl = None
    real = datasets.generate
    def counted(*args):
        (folder / f'made-{sys.argv[3]}').touch()
        time.sleep(0.5) # both are inside now
        return real(*args)
    counted.__wrapped__ = real # the key of the cache contains the source file of the generator
    datasets.generate = counted
    datasets._code = lambda: 'same'
    (folder / f'ready-{sys.argv[3]}').touch()
    while len(list(folder.glob('ready-*'))) < 2: time.sleep(0.001)
    puzzles = datasets.load('generated', BoardShape(2, 2), 200, data=folder)
    print(json.dumps([puzzles.hash, int(puzzles.puzzles.sum()), len(puzzles)]))
"""


@pytest.mark.parametrize('lock', ['lock', 'none'])
def test_two_processes_ask_for_the_same_set(lock, tmp_path):
    found = [finished(p) for p in [script(TWO, tmp_path, lock, i) for i in range(2)]]
    assert found[0] == found[1]
    assert len(list(tmp_path.glob('made-*'))) == (1 if lock == 'lock' else 2) # with locks one waits, without both work
    assert len([p for p in (tmp_path / 'cache').iterdir() if not p.name.endswith('.lock')]) == 1


def test_a_killed_conversion_leaves_nothing_half_valid(boards, tmp_path):
    (tmp_path / 'list.csv').write_text('puzzle,solution\n' + '\n'.join(f'{p},{s}' for p, s in zip(*boards)))
    process = script("""
        import sys, time
        from reasonnb.sudoku import datasets
        real = datasets.write_columns
        def slow(folder, blocks): # the columns are there, set.json is not
            n = real(folder, blocks)
            print('writing', flush=True)
            time.sleep(60)
        datasets.write_columns = slow
        datasets.load(sys.argv[1], data=sys.argv[2])
    """, tmp_path / 'list.csv', tmp_path)
    assert process.stdout.readline() == 'writing\n'
    parts = [p.name for p in (tmp_path / 'cache').iterdir()]
    assert len(parts) == 2 and any(p.endswith('.tmp') for p in parts)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert len(load(str(tmp_path / 'list.csv'), data=tmp_path)) == 300
    assert not list((tmp_path / 'cache').glob('.*.tmp'))


def test_a_full_disk_is_one_line_and_can_be_fixed(boards, tmp_path):
    code = """
        import json, resource, sys
        from reasonnb.core.config import UserError
        from reasonnb.sudoku import datasets
        from reasonnb.sudoku.board import BoardShape
        box = BoardShape(2, 3)
        datasets.prove_and_rate(datasets.generate(10, box)[0], box) # compiled before the limit
        if sys.argv[2] == 'full': resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try: print(json.dumps(len(datasets.load('generated', box, 2000, data=sys.argv[1]))))
        except UserError as e: print(json.dumps(str(e)))
    """
    message = finished(script(code, tmp_path, 'full'))
    assert re.match(r'cannot build .*generated-2x3-minimal-n2000.*too large', message), message
    assert not [p for p in (tmp_path / 'cache').iterdir() if not p.name.endswith('.lock')]
    assert finished(script(code, tmp_path, 'free')) == 2000


def test_a_changed_file_is_read_again_and_a_damaged_cache_is_named(boards, tmp_path):
    path = tmp_path / 'list.txt'
    path.write_text('\n'.join(boards[0][:10]))
    assert len(load(str(path), data=tmp_path)) == 10
    path.write_text('\n'.join(boards[0][:12]))
    assert len(load(str(path), data=tmp_path)) == 12
    newest = max((p for p in (tmp_path / 'cache').iterdir() if p.is_dir()), key=lambda p: p.stat().st_mtime_ns)
    (newest / 'solutions.npy').write_bytes((newest / 'solutions.npy').read_bytes()[:200])
    with pytest.raises(UserError, match='is damaged .* delete it'): load(str(path), data=tmp_path)


def test_sets_are_found_where_the_environment_says(boards, tmp_path, monkeypatch):
    (tmp_path / 'kaggle_9m').mkdir()
    lines = '\n'.join(layouts(*boards)['Kaggle 9M'])
    (tmp_path / 'kaggle_9m' / 'sudoku.csv.gz').write_bytes(gzip.compress(lines.encode()))
    monkeypatch.setenv('REASONNB_DATA', str(tmp_path))
    assert len(load('kaggle_9m')) == 300 and len(load('kaggle_9m', n=50)) == 50 and (tmp_path / 'cache').is_dir()
    # a read-only folder is read, the cache goes elsewhere
    monkeypatch.setattr(datasets.os, 'access', lambda path, mode: tmp_path not in [Path(path), *Path(path).parents])
    assert tmp_path not in [writable(data_folders()), *writable(data_folders()).parents]
    with pytest.raises(UserError, match='no data folder can be written'): writable(data_folders(tmp_path))


def test_what_is_missing_is_said_with_places_and_how_to_get_it(tmp_path, monkeypatch):
    messages = {
        'public:none': r'no sudoku/none.csv in .*point REASONNB_DATA at',
        'kaggle_3m': r'radcliffe/3-million.* from kaggle.com',
        'sudoku_extreme:validation': 'say sudoku_extreme:train or',
        'nowhere/list.csv': 'no file nowhere/list.csv: looked in',
        'generate': "did you mean 'generated'",
    }
    for name, message in messages.items():
        with pytest.raises(UserError, match=message) as error: load(name, data=tmp_path)
        assert '\n' not in str(error.value)
    with pytest.raises(UserError, match='clues=30 is for generated puzzles'):
        load('public:none', clues=30, data=tmp_path)
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(UserError, match=r"reasonnb\[hub\]"): find('sudoku_extreme:train', tmp_path)
    def offline(split, folder): raise ConnectionError('no route\nto host')
    monkeypatch.setattr(datasets, '_download', offline)
    with pytest.raises(UserError, match=r'the download failed \(no route to host\), or fetch'):
        find('sudoku_extreme:train', tmp_path)


def test_sudoku_extreme_is_downloaded_where_that_is_possible(boards, tmp_path, monkeypatch):
    def hub(repository, filename, repo_type, revision, local_dir):
        assert (repository, repo_type, len(revision)) == ('sapientinc/sudoku-extreme', 'dataset', 40)
        local_dir.mkdir()
        (local_dir / filename).write_text('\n'.join(layouts(*boards)['sudoku-extreme']))
        return str(local_dir / filename)
    fake = type(sys)('huggingface_hub')
    fake.hf_hub_download = hub
    monkeypatch.setitem(sys.modules, 'huggingface_hub', fake)
    assert len(load('sudoku_extreme:test', data=tmp_path)) == 300
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None) # found on disk from now on
    assert load('sudoku_extreme:test', data=tmp_path).report.sources[0]['layout'] == 'sudoku-extreme'


# the real thing

@needs_lists
@pytest.mark.parametrize('name', ['clue17', 'hard_25_clues', 'top1465', 'hardest375', 'se_diabolical'])
def test_public_lists_are_sound(name, tmp_path):
    table = pd.read_csv(LISTS / f'{name}.csv', dtype=str)
    found = load(f'public:{name}')
    assert len(found) == len(table) == found.report.uniqueness_checked and found.report.faulty == 0
    assert to_lines(found.puzzles, NINE) == list(table.question) and (found.ratings == table.rating.astype(float)).all()
    pairs = set(zip(found.classes.tolist(), table.grid_class)) # the list's own classes, found by another method
    assert len(pairs) == len(set(found.classes.tolist())) == table.grid_class.nunique()


@needs_lists
def test_several_lists_make_one_set_and_ambiguous_ones_are_all_reported():
    both = load('public:se_easy,se_hard')
    assert [s['file'] for s in both.report.sources] == ['se_easy.csv', 'se_hard.csv']
    assert len(both) == sum(s['rows'] for s in both.report.sources)
    with pytest.warns(UserWarning, match='10,000 x several solutions'): none = load('public:multi_solution')
    assert len(none) == 0 and none.report.rows == 10_000
    assert {e['reason'] for e in none.report.examples} == {'at least 2 solutions'} and len(none.report.examples) == 1000
    every = quiet_load('public:multi_solution', keep_bad=True)
    assert len(every) == 10_000 and (every.faults == FAULTS.index('several solutions')).all()
    assert not every.solutions.any()


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='memory is read from /proc')
def test_nine_million_puzzles_open_at_once(tmp_path):
    n = 9_000_000
    boards = ('u1', (81,)) # a sparse file
    columns = dict(puzzles=boards, solutions=boards, ratings=('f4', ()), classes=('u8', ()))
    for name, (dtype, width) in columns.items():
        path = tmp_path / f'{name}.npy'
        column = np.lib.format.open_memmap(path, mode='w+', dtype=dtype, shape=(n, *width))
        if name == 'classes': column[:] = np.random.default_rng(0).integers(1, n, n)
        column.flush()
    (tmp_path / 'set.json').write_text(json.dumps(dict(box=[3, 3], hash='x', report=dict(rows=n, kept=n))))
    opened, seconds, memory, used = finished(script("""
        import json, re, sys, time
        from reasonnb.sudoku.datasets import open_set
        from reasonnb.sudoku.puzzle_set import split_by_class
        start = time.perf_counter()
        puzzles = open_set(sys.argv[1])
        first = puzzles.puzzles[0], len(puzzles)
        opened = time.perf_counter() - start
        rss = lambda kind: int(re.search(kind + r':\s+(\d+)', open('/proc/self/status').read())[1]) * 1024
        memory = rss('VmHWM') # ru_maxrss would count the parent
        train, test = split_by_class(puzzles, 0.1)
        assert len(train) + len(test) == 9_000_000 and abs(len(test) - 900_000) < 1000
        for seed in range(5):
            assert train.sample(4096, seed).puzzles.shape == (4096, 81)
        assert train.sample(100_000).subset_by_rating(0).solutions.shape == (100_000, 81)
        # file pages are the system's to take back
        print(json.dumps([opened, time.perf_counter() - start, memory, rss('RssAnon')]))
    """, tmp_path))
    print(f'open {opened:.3f} s, {memory / 1e6:.0f} MB; split, samples {seconds:.1f} s, {used / 1e6:.0f} MB of its own')
    assert memory < 2e9 and used < 1e9


def test_reading_is_fast(tmp_path):
    line = '1' * 81
    (tmp_path / 'big.csv').write_text('puzzle,solution\n' + f'{line},{line}\n' * 200_000)
    start = time.process_time()
    assert sum(len(c.puzzles) for c in read_chunks(tmp_path / 'big.csv', NINE, Report())) == 200_000
    by_block = time.process_time() - start
    start = time.process_time()
    Reader([9]).feed(enumerate(['puzzle,solution', *[f'{line},{line}'] * 2000], 1))
    by_line = (time.process_time() - start) * 100
    assert by_block < by_line / 4 # a ratio, because machines differ
