"Properties of boards, symmetries and drawings, against plain references written here."
import csv
import os
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from reasonnb.core.config import UserError
from reasonnb.sudoku.board import (BoardShape, agrees, box_for, from_text, is_solved, is_valid, parse, parse_lines,
                                   to_line, to_lines, to_text)
from reasonnb.sudoku.display import GIVEN, WRONG, cell_kinds, show
from reasonnb.sudoku.symmetry import grid_class, random_symmetry, relabel_digits

SHAPES = [BoardShape(2, 2), BoardShape(2, 3), BoardShape(3, 2), BoardShape(3, 3), BoardShape(1, 5), BoardShape(2, 4),
          BoardShape(3, 4), BoardShape(4, 4)]
boxes = st.sampled_from(SHAPES)
seeds = st.integers(0, 2**31)
quick = settings(max_examples=40, deadline=None)


def pattern(box):
    "One solved grid of any shape: each row is the one above it, shifted."
    r, c = np.divmod(np.arange(box.cells), box.N)
    return ((box.cols * (r % box.rows) + r // box.rows + c) % box.N + 1).astype(np.uint8)


def rules_kept(grid, box):
    "The rules in the plainest words: sets of digits, row by row, column by column, box by box."
    g = np.asarray(grid, int).reshape(box.N, box.N)
    units = [*g, *g.T]
    corners = [(r, c) for r in range(0, box.N, box.rows) for c in range(0, box.N, box.cols)]
    units += [g[r:r + box.rows, c:c + box.cols].ravel() for r, c in corners]
    filled = [[d for d in u if d] for u in units]
    return all(len(set(u)) == len(u) for u in filled) and g.min() >= 0 and g.max() <= box.N


def moved_boards(box, seed, n=1):
    "Puzzles with random holes and their solved grids, each under its own random symmetry, and the generator."
    rng = torch.Generator().manual_seed(seed)
    solutions = random_symmetry(box, n, rng)(torch.from_numpy(pattern(box)).expand(n, -1))
    holes = torch.rand(solutions.shape, generator=rng) < .6
    return solutions.masked_fill(holes, 0), solutions, rng


@pytest.mark.parametrize('box', SHAPES, ids=str)
def test_units_and_peers(box):
    assert is_solved(pattern(box), box) and rules_kept(pattern(box), box)
    N = box.N
    together = {(a, b) for u in box.units for a in u for b in u if a != b}
    assert together == {(a, int(b)) for a in range(box.cells) for b in box.peers[a]}
    assert all(sorted(np.concatenate(box.units[k:k + N])) == list(range(box.cells)) for k in (0, N, 2 * N))


@quick
@given(boxes, seeds, st.sampled_from('.0-_'))
def test_lines_round_trip(box, seed, blank):
    puzzles = moved_boards(box, seed, 3)[0].numpy()
    lines = to_lines(puzzles, box)
    assert all(len(s) == box.cells for s in lines)
    assert (parse_lines([s.replace('.', blank).lower() + '\r\n' for s in lines], box) == puzzles).all()
    assert (from_text(to_text(puzzles[0], box), box) == puzzles[0]).all()
    if box in map(box_for, (16, 36, 81, 256)): assert to_line(parse(lines[0])) == lines[0]


@quick
@given(boxes, seeds, st.data())
def test_a_foreign_character_is_named_with_its_place(box, seed, data):
    line = to_line(moved_boards(box, seed)[0][0], box)
    at = data.draw(st.integers(0, box.cells - 1))
    allowed = '.0-_' + '123456789ABCDEFG'[:box.N]
    bad = data.draw(st.characters(codec='utf-8').filter(lambda c: c.upper() not in allowed and not c.isspace()))
    with pytest.raises(UserError) as e: parse(line[:at] + bad + line[at + 1:], box)
    message = str(e.value)
    place = f'character {at + 1} (row {at // box.N + 1}, column {at % box.N + 1})'
    assert f'{place} is {bad!r}' in message and '\n' not in message


@quick
@given(st.integers(0, 300).filter(lambda n: n not in (16, 36, 81, 256)))
def test_a_wrong_length_is_named(n):
    with pytest.raises(UserError, match=f'^{n} cells'): parse('.' * n)
    with pytest.raises(UserError, match=f'{n} characters, a board of 3x3 boxes has 81'):
        parse('.' * n, BoardShape(3, 3))


@quick
@given(boxes, seeds, st.sampled_from([np.uint8, np.int8, np.int64]))
def test_validity_agrees_with_the_plain_rules(box, seed, dtype):
    puzzles, solutions, rng = moved_boards(box, seed, 8)
    grids = torch.cat([puzzles, solutions]).numpy().astype(dtype)
    at = torch.randint(box.cells, (16,), generator=rng).numpy()
    # mostly wrong now, some digits out of range
    grids[np.arange(16), at] = torch.randint(box.N + 3, (16,), generator=rng).numpy()
    if dtype != np.uint8: grids[0, 0] = -1
    valid = [rules_kept(g, box) for g in grids]
    assert is_valid(grids, box).tolist() == valid
    assert is_valid(torch.from_numpy(grids), box).tolist() == valid
    assert is_solved(grids, box).tolist() == [v and g.all() for v, g in zip(valid, grids)]
    assert is_valid(grids.reshape(2, 8, -1), box).tolist() == [valid[:8], valid[8:]]
    assert is_valid(grids[0], box) == valid[0]


def test_validity_across_block_borders():
    grids = np.repeat(pattern(BoardShape(2, 2))[None], 10_000, 0)
    for bad in (0, 4095, 4096, 9999):
        grids[bad, 0] = grids[bad, 1]
    assert np.flatnonzero(~is_valid(grids)).tolist() == [0, 4095, 4096, 9999]


@quick
@given(boxes, seeds)
def test_symmetries_keep_the_rules_and_can_be_undone(box, seed):
    puzzles, solutions, rng = moved_boards(box, seed, 16)
    a, b = random_symmetry(box, 16, rng), random_symmetry(box, 16, rng)
    moved, solved = a(puzzles, solutions)
    assert is_solved(solved, box).all() and agrees(moved, solved).all()
    assert ((moved > 0).sum(1) == (puzzles > 0).sum(1)).all() and moved.dtype == puzzles.dtype
    assert (a.inverse()(moved) == puzzles).all()
    assert (a.then(b)(puzzles) == b(moved)).all()
    assert (a.then(b).inverse()(b(moved)) == puzzles).all()
    renamed = relabel_digits(box, 16, rng)(puzzles)
    assert ((renamed > 0) == (puzzles > 0)).all()
    one, other = (random_symmetry(box, 16, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert (one.source == other.source).all() and (one.digits == other.digits).all()


def first_row_in_order(grids, N):
    "Rename digits so that the first row reads 1, 2, 3, ..."
    names = np.zeros((len(grids), N + 1), np.uint8)
    order = np.arange(1, N + 1, dtype=np.uint8)[None].repeat(len(grids), 0)
    np.put_along_axis(names, grids[:, :N].astype(int), order, 1)
    return np.take_along_axis(names, grids.astype(int), 1)


def all_grids(box):
    "Every solved grid whose first row reads 1, 2, 3, ..."
    grids = np.arange(1, box.N + 1, dtype=np.uint8)[None]
    for cell in range(box.N, box.cells):
        before = [p for p in box.peers[cell] if p < cell]
        parts = [(d, grids[(grids[:, before] != d).all(1)]) for d in range(1, box.N + 1)]
        grids = np.concatenate([np.column_stack([g, np.full(len(g), d, np.uint8)]) for d, g in parts])
    return grids


def swaps(box):
    "The moves that generate all others: swaps of neighbours, and the transposition where boxes are square."
    cells, N = np.arange(box.cells).reshape(box.N, box.N), box.N
    def lines(size):                       # swap two lines of one group, or two whole groups
        for i in range(N - 1):
            if i // size != (i + 1) // size: continue
            order = np.arange(N)
            order[[i, i + 1]] = i + 1, i
            yield order
        for b in range(N // size - 1):
            groups = np.arange(N).reshape(-1, size)
            groups[[b, b + 1]] = groups[[b + 1, b]]
            yield groups.ravel()
    yield from (cells[p].ravel() for p in lines(box.rows))
    yield from (cells[:, p].ravel() for p in lines(box.cols))
    if box.rows == box.cols: yield cells.T.ravel()


@pytest.mark.parametrize('box, grids_known, classes_known',
                         [(BoardShape(2, 2), 288, 2), (BoardShape(2, 3), 28_200_960, 49)], ids=str)
def test_grid_class_is_exact_on_small_boards(box, grids_known, classes_known):
    "The fingerprint separates exactly the orbits found by walking from grid to grid with the elementary moves."
    grids = all_grids(box)
    assert len(grids) * np.prod(np.arange(1, box.N + 1)) == grids_known
    index = {g.tobytes(): i for i, g in enumerate(grids)}
    moves = [np.array([index[g.tobytes()] for g in first_row_in_order(grids[:, m], box.N)]) for m in swaps(box)]
    orbit, before = np.arange(len(grids)), None
    while before is None or (orbit != before).any():
        before = orbit.copy()
        for to in moves:
            np.minimum.at(orbit, to, orbit)
            orbit = np.minimum(orbit, orbit[to])
    classes = grid_class(grids, box)
    assert len(set(orbit)) == classes_known == len(set(classes)) == len(set(zip(orbit, classes)))


@quick
@given(boxes, seeds)
def test_grid_class_is_invariant(box, seed):
    _, solutions, _ = moved_boards(box, seed, 8)
    assert set(grid_class(solutions, box)) == set(grid_class(pattern(box)[None], box))


def list_file(name):
    "A public list of puzzles where this machine has it."
    root = Path(__file__).resolve().parent.parent
    own = Path(os.environ.get('REASONNB_DATA', root / 'data'))
    for folder in (own / 'sudoku', root.parent / 'shared' / 'data' / 'sudoku'):
        if (folder / name).exists(): return folder / name
    pytest.skip(f'{name} is not on this machine')


@pytest.mark.parametrize('name, classes_listed', [('clue17.csv', 41_652), ('top1465.csv', 994)])
def test_grid_class_agrees_with_the_listed_classes(name, classes_listed):
    "On real 9x9 lists the classes are those of the column that came with the list, and symmetries do not change them."
    with open(list_file(name)) as f: rows = list(csv.DictReader(f))
    grids, listed = parse_lines([r['answer'] for r in rows]), [r['grid_class'] for r in rows]
    classes = grid_class(grids)
    assert len(set(classes)) == len(set(listed)) == len(set(zip(classes, listed))) == classes_listed
    some = torch.from_numpy(grids[:2000])
    moves = random_symmetry(BoardShape(3, 3), len(some), torch.Generator().manual_seed(1))
    assert (grid_class(moves(some)) == classes[:2000]).all()


def test_grid_class_wants_solutions():
    grids = np.stack([pattern(BoardShape(3, 3))] * 3)
    grids[1, 5] = 0
    with pytest.raises(UserError, match='grid 1 is not a solved grid'): grid_class(grids)


@quick
@given(boxes, seeds)
def test_drawing(box, seed):
    puzzles, solutions, rng = moved_boards(box, seed, 2)
    answers = solutions.clone()
    cell = int(torch.randint(box.cells, (1,), generator=rng))
    puzzles[:, cell] = 0
    answers[0, cell] = answers[0, cell] % box.N + 1
    shown, kinds = cell_kinds(puzzles[0].numpy(), answers[0].numpy(), solutions[0].numpy(), box=box)
    assert np.flatnonzero(kinds == WRONG).tolist() == [cell]
    assert ((kinds == GIVEN) == (puzzles[0].numpy() > 0)).all() and (shown == answers[0].numpy()).all()
    repeat = cell_kinds(puzzles[0].numpy(), answers[0].numpy(), box=box)[1]       # no solution: the repeat is found
    assert repeat[cell] == WRONG and not ((repeat == WRONG) & (puzzles[0].numpy() > 0)).any()
    candidates = torch.ones(2, box.cells, box.N)
    picture = show(puzzles, answers, solutions, candidates=candidates, titles=['a < b', '"'], box=box)
    root = ElementTree.fromstring(picture.svg)
    assert len([e for e in root.iter() if e.tag.endswith('title')]) == 1
    assert picture.text.count('!') == 2                                           # the cell and the legend
