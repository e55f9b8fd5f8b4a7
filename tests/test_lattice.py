"""The pool a lattice network learns from, the boards it is measured on, and the weights that are shipped."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from reasonnb.core.trainer import fit
from reasonnb.sudoku.board import BoardShape
from reasonnb.sudoku.generator import generate
from reasonnb.systems.lattice import benchmark, task as tasks
from reasonnb.systems.lattice.config import LatticeConfig
from reasonnb.systems.lattice.neural_solver import load_solver, ship
from reasonnb.systems.lattice.rollouts import MoveResult
from reasonnb.systems.lattice.search import Reasoned, SearchBudget, begin
from reasonnb.systems.lattice.task import LatticeTask

BOX = BoardShape(2, 3)
TINY = LatticeConfig(box=(2, 3), data='generated', puzzles=300, train_puzzles=0, test_puzzles=20, validation_puzzles=20,
                     difficulty=(0., 1e9), network='symmetric', d_model=8, d_ff=16, layers=1, loops=2, batch_size=6,
                     steps=2, rollouts=(1, 8), max_moves=2, device='cpu')
pytestmark = pytest.mark.usefixtures('one_thread')


def fake_search(task, asked):
    "Five answers: right at once, right by the second stage, none, wrong, and none after a wrong full board."
    def reason(model, puzzles, box, budget):
        asked.append((puzzles, budget.rollouts))
        answers = torch.as_tensor(next(s.solutions for s in task.sides.values()
                                       if np.array_equal(s.puzzles, puzzles))).long()
        other = answers % 6 + 1
        none = torch.zeros_like(answers[0])
        return Reasoned(['solved', 'solved', 'abstained', 'solved', 'abstained'],
                        answers=torch.stack([answers[0], answers[1], none, other[3], none]),
                        bare=torch.stack([answers[0], other[1], none, answers[3], other[4]]),
                        moves=torch.arange(5), rollouts=torch.tensor([1, 8, 8, 8, 8]))
    return reason


def test_boards_are_counted_on_their_own_side(monkeypatch):
    task, asked = LatticeTask(TINY), []
    task.sides = {name: side.select(np.arange(5)) for name, side in task.sides.items()}
    monkeypatch.setattr(tasks, 'reason', fake_search(task, asked))
    evaluated, tested = task.evaluate(), task.test()
    for (puzzles, rollouts), side, width in zip(asked, ('validation', 'test'), ((1,), (1, 8)), strict=True):
        assert np.array_equal(puzzles, task.sides[side].puzzles) and rollouts == width
    wanted = dict(puzzle_accuracy=.4, wrong=.2, bare_right=.4, bare_wrong=.4, moves=2, n_test=5)
    assert evaluated == pytest.approx(wanted)
    assert {name: tested[name] for name in wanted} == pytest.approx(wanted)
    assert (tested['puzzle_accuracy@1'], tested['loss']) == pytest.approx((.2, .6))


@pytest.mark.parametrize('change, ages', [
    ({}, [-1, -1, -1, 1, 1, 1]), (dict(max_age=1), [-1] * 6), (dict(on_policy=False), [-1] * 6)])
def test_a_slot_gets_a_new_board_when_the_old_one_is_done(change, ages, monkeypatch):
    "Dead, full, lost, lost but kept for another move, and two that go on."
    def moved(alive, *rest):
        rows = torch.arange(6)
        return MoveResult(alive, rows == 0, rows == 1, guessed=rows > 6, other=alive)
    monkeypatch.setattr(tasks, 'move', moved)
    task = LatticeTask(TINY.replace(**change))
    batch = task.batch(0)
    true = torch.nn.functional.one_hot(batch['solutions'] - 1, 6).bool()
    batch['alive'][2:4] &= ~true[2:4]
    batch['stays'][:] = torch.arange(6) == 3
    task.backward(batch)
    assert task.pool['age'].tolist() == ages
    later = task.batch(1)
    task.backward(later)
    new = torch.tensor([age < 0 for age in ages])
    assert torch.equal(task.pool['solutions'][new], later['solutions'][new])
    assert torch.equal(task.pool['solutions'][~new], batch['solutions'][~new])


def test_the_first_half_of_the_training_has_its_own_iterations():
    task = LatticeTask(TINY.replace(steps=10, early_loops=1))
    assert [int(task.batch(step)['loops'][0]) for step in (0, 4, 5, 9)] == [1, 1, 2, 2]


def test_when_there_is_no_room_the_oldest_state_goes():
    puzzles = torch.as_tensor(generate(1, BOX, seed=0)[0])
    rows = begin(puzzles, [(0, 0, 0)], BOX, SearchBudget(backtrack_depth=3))
    states = torch.rand(4, 1, 36, 6, generator=torch.Generator().manual_seed(0)) > .5
    always = torch.tensor([True])
    for state in states: rows.remember(always, state)
    for state in states.flip(0)[:3]:
        assert rows.go_back(always).item() and torch.equal(rows.alive, state)
    assert not rows.go_back(always).item()


def test_the_weights_that_were_measured_are_shipped(tmp_path):
    config = TINY.replace(ema=.9, test_puzzles=2, validation_puzzles=2, rollouts=(1,))
    fit(LatticeTask(config), config, tmp_path/'run')
    solver = load_solver(checkpoint=ship(tmp_path/'run', tmp_path/'lattice-2x3.pt'))
    state = torch.load(tmp_path/'run/checkpoint.pt', weights_only=True)
    shipped = [p.detach() for p in solver.network.parameters()]
    assert all(map(torch.equal, shipped, state['ema']['shadow']))
    assert not all(map(torch.equal, shipped, state['model'].values()))


def test_a_full_board_that_is_wrong_is_told_from_none(monkeypatch):
    puzzles, solutions = generate(3, BOX, seed=2)
    boards = benchmark.PuzzleSet(puzzles, solutions, np.zeros(3, np.float32), np.arange(3, dtype=np.uint64), BOX)
    right = torch.as_tensor(solutions).long()
    bare = torch.stack([right[0], right[1] % 6 + 1, right[2] * 0])
    found = Reasoned(['solved', 'abstained', 'abstained'], answers=right, bare=bare, moves=torch.ones(3),
                     rollouts=torch.ones(3))
    monkeypatch.setattr(benchmark, 'verdicts', lambda *words: ([found], {}))
    monkeypatch.setattr(benchmark, 'alone', lambda *words: [0.])
    monkeypatch.setattr(benchmark, 'classical_rate', lambda *words: 1.)
    row = benchmark.run_tier(boards, None, SearchBudget())
    assert (row['bare_right'], row['bare_wrong'], row['wrong']) == (1, 1, 0)


def test_the_test_of_agreement_takes_puzzles_with_several_solutions_only(monkeypatch):
    puzzles, solutions = generate(6, BOX, seed=2)
    faults = np.array([0, 4, 1, 4, 0, 2], np.uint8)  # 4: several solutions
    every = benchmark.PuzzleSet(puzzles, solutions, np.zeros(6, np.float32), np.arange(6, dtype=np.uint64), BOX,
                                faults=faults)
    monkeypatch.setattr(benchmark, 'load', lambda *words, **more: every)
    solver = SimpleNamespace(box=BOX)
    assert np.array_equal(benchmark._several(solver, 0, 0), puzzles[[1, 3]])
    assert len(benchmark._several(solver, 1, 0)) == 1


def test_what_the_network_does_not_notice_is_labelled_by_the_count():
    "Boards with one clue, and three puzzles."
    solver, (puzzles, _) = load_solver(BOX), generate(3, BOX, seed=2)
    several = np.zeros((4, 36), np.uint8)
    several[:, 0] = np.arange(1, 5)
    for level, noticed in ((1, 0.), (3, 1.)):
        row = benchmark.agreement_row(solver, solver.budget(agreement=level), several, puzzles)
        assert (row['agreement'], row['n_several'], row['n_unique'], row['solved_unique']) == (level, 4, 3, 1.)
        assert (row['noticed'], row['labelled'], row['as_solved']) == (noticed, 1., 0.)


def test_a_table_goes_from_easy_to_hard():
    row = dict(n=2, solved=2, wrong=0, bare_right=1, bare_wrong=0, moves=1., median_moves=1., rollouts=1., flop=1.,
               seconds=1., seconds_alone=1., classical_per_second=1.)
    report = dict(tiers={'mine': row, 'se11': row, 'clue17': row, 'top95': row | dict(n=0), 'easy_45_clues': row})
    assert list(benchmark.table(report)['tier']) == ['easy_45_clues', 'clue17', 'se11', 'mine']
