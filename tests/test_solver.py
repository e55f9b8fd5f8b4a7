"""The solver against an independent oracle (OR-tools CP-SAT), the public lists, broken input, signals and caches."""
import csv, os, signal, subprocess, sys, time
from pathlib import Path

import numba
import numpy as np
import pytest
from ortools.sat.python import cp_model

from reasonnb.core.compiled import compiled
from reasonnb.core.config import UserError
from reasonnb.sudoku import bands, search
from reasonnb.sudoku.board import BoardShape, agrees, is_solved, parse_lines
from reasonnb.sudoku.generator import generate, random_grids
from reasonnb.sudoku.solver import _searched, count_solutions, prove, rate, solve

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (Path(os.environ.get('REASONNB_DATA', ROOT / 'data')) / 'sudoku', ROOT / '../shared/data/sudoku')
LISTS = next((folder for folder in FOLDERS if (folder / 'clue17.csv').exists()), None)
needs_lists = pytest.mark.skipif(LISTS is None, reason='the public lists are not on this machine')
SHAPES = [BoardShape(2, 2), BoardShape(2, 3), BoardShape(3, 2), BoardShape(3, 3)]


def oracle(puzzle, rows, cols):
    "Up to two solutions by CP-SAT, from the rules alone: no index array of the package is used."
    N = rows * cols
    model = cp_model.CpModel()
    x = [[model.new_int_var(1, N, f'{r},{c}') for c in range(N)] for r in range(N)]
    for i in range(N):
        model.add_all_different(x[i])
        model.add_all_different([x[r][i] for r in range(N)])
        top, left = i // rows * rows, i % rows * cols
        model.add_all_different([x[top + k // cols][left + k % cols] for k in range(N)])
    cells = [v for line in x for v in line]
    for v, d in zip(cells, puzzle):
        if d: model.add(v == int(d))
    cp, found = cp_model.CpSolver(), []
    cp.parameters.num_workers = 1
    while len(found) < 2:
        status = cp.solve(model)
        assert status in (cp_model.OPTIMAL, cp_model.FEASIBLE, cp_model.INFEASIBLE)
        if status == cp_model.INFEASIBLE: break
        found.append([cp.value(v) for v in cells])
        differs = []
        for v, d in zip(cells, found[-1]):
            b = model.new_bool_var('')
            model.add(v != d).only_enforce_if(b)
            differs.append(b)
        model.add_bool_or(differs)
    return found


def cases(box, n, seed):
    "Random grids with random cells kept, from nearly empty to nearly full; every third one has a wrong digit."
    rng = np.random.default_rng(seed)
    grids = random_grids(n, box, seed)
    puzzles = grids * (rng.random(grids.shape) < np.linspace(.1, .7, n)[:, None])
    for p in puzzles[::3]:
        p[rng.integers(box.cells)] = rng.integers(1, box.N + 1)
    return puzzles.astype(np.uint8)


@pytest.mark.parametrize('box', SHAPES, ids=str)
def test_agrees_with_the_oracle(box):
    puzzles = cases(box, 45, seed=box.rows * 10 + box.cols)
    solutions, counts, _ = prove(puzzles, box)
    for puzzle, solution, count in zip(puzzles, solutions, counts):
        found = oracle(puzzle, box.rows, box.cols)
        assert count == len(found)
        if len(found) == 1: assert solution.tolist() == found[0]
        if not found: assert not solution.any()
    assert set(counts) == {0, 1, 2}                      # the cases cover all three answers
    several = solutions[counts == 2]                     # one of several: keeps the clues, the oracle confirms it
    assert ((puzzles[counts == 2] == 0) | (puzzles[counts == 2] == several)).all()
    assert all(oracle(s, box.rows, box.cols) == [s.tolist()] for s in several[:5])


def test_both_searches_of_a_9x9_board_agree():
    "The search by bands and the general one: counts up to 50, and the solution where it is the only one."
    box = BoardShape(3, 3)
    puzzles = np.concatenate([cases(box, 45, seed=s) for s in range(40)])
    shape = dict(limit=50, workers=1)
    ours, counts, _ = _searched(bands._prove_bands, bands._band_tables(), puzzles, **shape)
    theirs, expected, _ = _searched(search._prove, search._tables(box), puzzles, **shape)
    assert (counts == expected).all() and len(set(counts)) > 10
    assert (ours == theirs)[counts <= 1].all()
    several = counts > 1
    assert is_solved(ours[several], box).all() and agrees(puzzles, ours)[several].all()


def test_a_cell_that_two_digits_need_is_a_contradiction():
    "A branch of this search comes to such a cell; a guess in it would change nothing, so the search would never end."
    line = '..............1..2..3....4.........1.....25.6.78.5........4..8..2.......61...3...'
    puzzle = parse_lines([line])
    solution, count, _ = prove(puzzle, BoardShape(3, 3))
    assert count == 1 and is_solved(solution).all() and agrees(puzzle, solution).all()


def test_counts_beyond_two():
    puzzle = cases(BoardShape(2, 2), 45, seed=3)[10:11]
    empty = np.zeros_like(puzzle)
    assert count_solutions(empty, BoardShape(2, 2), limit=10 ** 6) == 288     # known
    assert count_solutions(empty, BoardShape(2, 2), limit=7) == 7
    assert count_solutions(np.zeros((1, 36), int), BoardShape(2, 3), limit=2000) == 2000
    digits = np.zeros((1, 36), int)
    digits[0, :6] = range(1, 7)
    digits[0, 6:9] = 4, 5, 6
    digits[0, 9:12] = 1, 2, 3
    filled = [np.where(np.arange(36) == 12, d, digits) for d in range(1, 7)]
    total, *branches = (count_solutions(p, BoardShape(2, 3), limit=10 ** 7)[0] for p in (digits, *filled))
    assert total == sum(branches) > 1000                  # the branches of a cell add up


def test_odd_shapes_and_sizes():
    shapes = (1, 1), (1, 4), (2, 1), (2, 5), (3, 4), (4, 4)
    for box in (BoardShape(*shape) for shape in shapes):
        grid = random_grids(1, box)
        assert (solve(grid, box) == grid).all() and rate(grid, box) == 0
    assert prove(np.zeros((0, 81), np.uint8), BoardShape(3, 3))[0].shape == (0, 81)


def test_same_answer_from_any_number_of_threads_and_any_memory_layout():
    puzzles = np.concatenate([cases(BoardShape(3, 3), 45, seed=s) for s in range(60)])
    one, many = prove(puzzles, BoardShape(3, 3), workers=1), prove(puzzles, BoardShape(3, 3), workers=3)
    odd = prove(np.asfortranarray(puzzles.astype(np.int64)), BoardShape(3, 3))
    for a, b, c in zip(one, many, odd):
        assert (a == b).all() and (a == c).all()


def test_the_input_is_not_touched():
    puzzles = cases(BoardShape(2, 3), 30, seed=1)
    before = puzzles.copy()
    prove(puzzles, BoardShape(2, 3))
    assert (puzzles == before).all()


@pytest.mark.parametrize('puzzles, box, words', [
    (np.zeros(81, int), BoardShape(3, 3), 'need (n, 81)'),
    (np.zeros((2, 80), int), BoardShape(3, 3), 'need (n, 81)'),
    (np.full((1, 36), 7), BoardShape(2, 3), 'take 0 to 6'),
    (np.full((1, 36), -1), BoardShape(2, 3), 'take 0 to 6'),
    (np.full((1, 36), .5), BoardShape(2, 3), 'whole numbers'),
    (np.zeros((1, 400), int), BoardShape(4, 5), 'up to 16 digits')])
def test_bad_input_is_one_clear_line(puzzles, box, words):
    for call in (solve, count_solutions, rate, prove):
        with pytest.raises(UserError) as error: call(puzzles, box)
        assert words in str(error.value) and '\n' not in str(error.value)
    with pytest.raises(UserError, match='limit=0'): prove(np.zeros((1, 16), int), BoardShape(2, 2), limit=0)


def read(name, n):
    "The first n rows of a list: puzzles, answers, ratings."
    with open(LISTS / f'{name}.csv') as file: rows = [row for row, _ in zip(csv.DictReader(file), range(n))]
    def digits(key): return np.array([[int(c) if c.isdigit() else 0 for c in row[key]] for row in rows], np.uint8)
    ratings = np.array([int(row.get('rating') or 0) for row in rows])
    return digits('question'), digits('answer') if 'answer' in rows[0] else None, ratings


@needs_lists
@pytest.mark.parametrize('name', ['easy_45_clues', 'medium_35_clues', 'hard_25_clues', 'clue17', 'top95', 'top1465',
                                  'se11', 'se_diabolical', 'hardest375'])
def test_public_lists(name):
    puzzles, answers, ratings = read(name, 3000)
    solutions, counts, guesses = prove(puzzles, BoardShape(3, 3))
    assert (counts == 1).all() and (solutions == answers).all()
    mine = rate(puzzles, BoardShape(3, 3))
    assert guesses.sum() <= .6 * mine.sum() or mine.mean() < 1    # locked candidates spare many of them
    if ratings.std(): assert np.corrcoef(mine, ratings)[0, 1] > .999      # another program, the same definition
    assert abs(mine.mean() - ratings.mean()) <= .01 * ratings.mean()


@needs_lists
def test_public_list_of_puzzles_with_several_solutions():
    assert (count_solutions(read('multi_solution', 3000)[0], BoardShape(3, 3)) == 2).all()


def double(x): return 2 * x


def test_compiles_where_no_cache_can_be_written(monkeypatch):
    monkeypatch.setattr('numba.core.caching.CacheImpl._locator_classes', [])      # as in a read-only installation
    with pytest.raises(RuntimeError, match='no locator'): numba.njit(double, cache=True)
    assert compiled(double)(21) == 42


def test_disk_cache_is_read_back():
    """Another process loads the code compiled by this one, and it works.

    Numba stores some kinds of functions that crash when loaded."""
    puzzles, _ = generate(50, BoardShape(3, 3))
    stored = [list(Path(kernel._cache.cache_path).glob(f'*.{kernel.__name__}*.nbi'))
              for kernel in (search._grids, bands._thin_bands)]
    if not all(stored): pytest.skip('no writable folder for the cache')
    code = ('from reasonnb.sudoku import bands, generator, search; from reasonnb.sudoku.board import BoardShape;'
            'p, _ = generator.generate(50, BoardShape(3, 3), workers=1);'
            'hits = [sum(f.stats.cache_hits.values()) for f in (search._grids, bands._thin_bands)];'
            'print(*hits, p.tobytes().hex())')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    *hits, other = done.stdout.split()
    assert hits == ['1', '1'] and bytes.fromhex(other) == puzzles.tobytes()


@pytest.mark.skipif(sys.platform == 'win32', reason='POSIX signals')
def test_ctrl_c_ends_a_long_job():
    code = ('import sys; from reasonnb.sudoku.board import BoardShape; from reasonnb.sudoku.generator import generate;'
            'generate(1, BoardShape(3, 3)); print("ready", flush=True);'
            'generate(3_000_000, BoardShape(3, 3), workers=2)')
    process = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == 'ready\n'
        time.sleep(.5)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    finally: process.kill()
    assert process.returncode != 0 and 'KeyboardInterrupt' in errors
