"""The data of a run: what the run's seed may change and what not, phases, and the weights of a batch."""
import numpy as np
import pytest
import torch

from reasonnb.lab.catalogue import resolve
from reasonnb.sudoku.board import BoardShape
from reasonnb.sudoku.datasets import load
from reasonnb.sudoku.puzzle_set import PuzzleSet
from reasonnb.sudoku.solver import rate
from reasonnb.sudoku.splits import Boards, _cut, balanced

BOX = BoardShape(2, 3)
PHASES = ((0., 0., 0.), (.5, 1., 1e9))  # boards that need no guess, then those that need one


def boards_of(**changes): return Boards(resolve('baseline', 'smoke', **changes))


def test_the_seed_of_a_run_changes_no_side():
    first, second = (boards_of(seed=seed).sides for seed in (0, 3))
    assert {name: side.hash for name, side in first.items()} == {name: side.hash for name, side in second.items()}


def test_no_batch_of_a_seed_comes_back_under_another_one():
    steps = [*range(30), 100, 1_000, 10_000, 100_000]
    seen = [boards_of(seed=seed, relabel=False).batch(step)['puzzles'].numpy().tobytes()
            for seed in range(4) for step in steps]
    assert len(set(seen)) == len(seen)


def test_a_phase_begins_at_its_share_of_the_steps_and_draws_its_own_boards():
    boards = boards_of(phases=PHASES, steps=20, relabel=False)
    assert (boards.phase(9), boards.phase(10)) == (boards.phase(0), boards.phase(19))
    easy, hard = (rate(boards.batch(step)['puzzles'].numpy(), BOX) for step in (9, 10))
    assert easy.max() == 0 and hard.min() >= 1


def test_an_item_weighs_as_much_as_it_has_blanks():
    batch = boards_of().batch(0)
    assert torch.equal(batch.weights, (batch['puzzles'] == 0).sum(1).float())


def test_a_smaller_side_is_a_sample_of_the_whole_one():
    few, every = (boards_of(train_puzzles=n).sides['train'].puzzles for n in (50, 0))
    place = {board.tobytes(): at for at, board in enumerate(every)}
    places = [place[board.tobytes()] for board in few]
    assert len(set(places)) == 50 and max(places) > len(every) / 2


def test_generated_sets_of_other_clues_are_kept_apart(tmp_path):
    minimal, many = (load(name, BOX, n=20, data=tmp_path) for name in ('generated', 'generated:20'))
    assert ((many.puzzles > 0).sum(1) == 20).all() and ((minimal.puzzles > 0).sum(1) < 20).all()


def labelled(classes, ratings):
    "Empty boards of these classes and ratings."
    boards = np.zeros((len(classes), 36), np.uint8)
    columns = np.asarray(ratings, np.float32), np.asarray(classes, np.uint64)
    return PuzzleSet(boards, boards, *columns, BOX, 'toy', 'hash')


def test_a_held_out_side_has_as_many_boards_of_each_class():
    side = labelled([0] * 90 + [1] * 9 + [2] * 21, np.zeros(120))
    assert np.bincount(_cut(side, 24, (), even=True).classes.astype(int)).tolist() == [8, 8, 8]
    assert np.bincount(_cut(side, 24, (), even=False).classes.astype(int)).tolist() != [8, 8, 8]
    hard = labelled(side.classes, np.arange(120) % 2)
    assert np.bincount(_cut(hard, 24, (0., 1.), even=True).classes.astype(int)).tolist() == [8, 8, 8]


def test_the_boards_of_a_bucket_are_drawn_from_all_of_it():
    side = labelled(np.zeros(200), np.arange(200))
    drawn = [balanced(side, (0., 100.), 20, seed=seed).ratings for seed in (0, 0, 1)]
    for ratings in drawn: assert len(ratings) == 20 and (ratings < 100).sum() == 10
    assert drawn[0].tolist() == drawn[1].tolist() != drawn[2].tolist()
    assert drawn[0][:10].max() > 50 and drawn[0].max() > 150


@pytest.mark.parametrize('low, high', [(1., 1e9), (0., 0.)])
def test_all_sides_keep_to_the_difficulty(low, high):
    sides = boards_of(difficulty=(low, high), even_classes=False, test_puzzles=8, validation_puzzles=8).sides
    assert all(low <= side.ratings.min() and side.ratings.max() <= high for side in sides.values())
