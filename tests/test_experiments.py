"""What a seed of a Sudoku run decides."""
import torch
from reasonnb.lab.catalogue import resolve
from reasonnb.sudoku.tasks import SudokuTask


def tasks(): return [SudokuTask(resolve('baseline', 'smoke', seed=seed)) for seed in (0, 3)]


def test_seed_decides_the_initial_weights():
    a, b = tasks()
    assert not torch.equal(a.model.head.weight, b.model.head.weight)


def test_seed_decides_the_order_of_the_boards():
    a, b = tasks()
    assert not torch.equal(a.batch(7)['puzzles'], b.batch(7)['puzzles'])
