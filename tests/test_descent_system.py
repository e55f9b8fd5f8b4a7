"""The descent as a system: what it measures, what it never sees, and what its controls can do."""
import numpy as np
import pytest
import torch

from reasonnb.core.config import UserError
from reasonnb.core.trainer import fit
from reasonnb.lab.catalogue import experiments, resolve
from reasonnb.sudoku.board import BoardShape, agrees, is_solved
from reasonnb.sudoku.generator import generate
from reasonnb.sudoku.puzzle_set import PuzzleSet
from reasonnb.systems.descent.chains import descend
from reasonnb.systems.descent.controls import RulePenalty, anneal
from reasonnb.systems.descent.measures import accuracies, curve
from reasonnb.systems.descent.task import DescentTask, build_task

pytestmark = pytest.mark.usefixtures('one_thread')
SLUGS = [slug for slug, (system, _) in experiments().items() if system.name == 'descent']
TINY = resolve('descent', 'smoke')


@pytest.fixture(scope='module')
def trained():
    task = build_task(TINY.replace(steps=60, batch_size=32, lr=1e-2))
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=1e-2)
    for step in range(60):
        optimizer.zero_grad()
        task.backward(task.batch(step))
        optimizer.step()
    return task.model.eval()


@pytest.mark.parametrize('slug', SLUGS)
def test_every_experiment_trains(slug):
    task = build_task(resolve(slug, 'smoke'))
    task.backward(task.batch(15))
    norms = [p.grad.norm() for p in task.model.parameters() if p.grad is not None]
    assert all(norm.isfinite() for norm in norms) and sum(norms) > 0


def test_a_step_is_the_same_for_the_same_seed():
    one, other = (build_task(TINY.replace(seed=3)) for _ in range(2))
    assert one.backward(one.batch(12))['loss'] == other.backward(other.batch(12))['loss']
    assert one.batch(12)['puzzles'].equal(other.batch(12)['puzzles'])
    different = build_task(TINY.replace(seed=4))
    assert not different.batch(12)['noise'].equal(one.batch(12)['noise'])


def test_rollouts_begin_when_they_should():
    task = build_task(TINY.replace(rollouts_from=.5, rollout_share=.25))
    assert not task.batch(TINY.steps // 2 - 1)['lengths'].any()
    assert (task.batch(TINY.steps // 2)['lengths'] > 0).sum() == TINY.batch_size // 4
    assert not build_task(TINY.replace(states='start', rollouts_from=0.)).batch(5)['lengths'].any()


def test_descent_is_blind_to_solutions(trained):
    "Shuffled solutions change what is counted, never what is found."
    task, blind = build_task(TINY), build_task(TINY)
    side = blind.sides['test']
    shuffled = np.roll(np.asarray(side.solutions), 1, axis=0)
    blind.sides['test'] = PuzzleSet(np.asarray(side.puzzles), shuffled, np.asarray(side.ratings),
                                    np.asarray(side.classes), side.box, name=side.name, hash=side.hash)
    for one in (task, blind): one.model.load_state_dict(trained.state_dict())
    true, false = task.test(), blind.test()
    assert true['kept_rules'] == false['kept_rules'] and true['downhill'] == false['downhill']
    assert false['puzzle_accuracy'] == 0 and false['cell_accuracy'] < true['cell_accuracy']
    assert task.descend(task.boards('test')[0]).boards.equal(blind.descend(blind.boards('test')[0]).boards)


def test_more_chains_are_the_same_chains_and_more(trained):
    puzzles, solutions = map(torch.as_tensor, generate(12, BoardShape(2, 3), seed=9))
    few, many = (descend(trained, puzzles, steps=8, chains=n, keep=True) for n in (3, 3))
    assert few.energies.equal(many.energies)
    found = accuracies(few, solutions.long(), puzzles)
    assert found['oracle_puzzle_accuracy@3'] >= found['puzzle_accuracy@3'] == found['puzzle_accuracy']
    along = curve(few, solutions.long())
    assert along['lowest_accuracy_after_8'] == found['puzzle_accuracy'] and 0 <= along['downhill'] <= 1


def test_a_smoke_run_leaves_a_record(tmp_path):
    record = fit(DescentTask(TINY), TINY, tmp_path)
    assert record['params'] < 10_000 and 'oracle_*' in record['protocol'] and 'no rules' in record['protocol']
    wanted = {'puzzle_accuracy', 'puzzle_accuracy@1', 'oracle_puzzle_accuracy@2', 'chain_accuracy', 'kept_rules',
              'sure_puzzle_accuracy@2', 'chain_accuracy_after_6', 'wrong_answers', 'truth_below_wrong', 'downhill'}
    assert wanted <= set(record['metrics'])
    assert record['flop_per_item'] > 0 and 'split by class' in record['data']


def test_held_out_boards_get_their_clues_once():
    one = build_task(TINY.replace(test_clues=(20, 24)))
    counts = (np.asarray(one.sides['test'].puzzles) > 0).sum(1)
    assert counts.min() >= 20 and counts.max() <= 24
    other = build_task(TINY.replace(test_clues=(20, 24), seed=5))
    assert np.array_equal(one.sides['test'].puzzles, other.sides['test'].puzzles)


@pytest.mark.parametrize('box', [BoardShape(2, 2), BoardShape(2, 3), BoardShape(3, 2)], ids=str)
def test_the_rules_alone_solve_small_boards(box):
    puzzles, solutions = map(torch.as_tensor, generate(20, box, seed=2))
    annealed = torch.as_tensor(anneal(puzzles, box, 1_000))
    assert is_solved(annealed, box).float().mean() > .9 and agrees(puzzles, annealed).all()
    found = descend(RulePenalty(), puzzles, box, steps=150, chains=6, block=20)
    assert (found.boards == solutions).all(1).float().mean() > .8


def test_annealing_says_what_it_cannot_do():
    board = np.zeros((1, 16), int)
    with pytest.raises(UserError, match='sweeps=0'): anneal(board, BoardShape(2, 2), 0)
    with pytest.raises(UserError, match='temperatures fall'): anneal(board, BoardShape(2, 2), 5, hot=.1, cold=.2)
    board[0, :2] = 1  # a digit twice in a row and a box
    assert not is_solved(torch.as_tensor(anneal(board, BoardShape(2, 2), 50)), BoardShape(2, 2)).any()
