"""What a looped network is given, when, and on which boards: slips that change numbers without an error."""
import numpy as np
import pytest
import torch

from reasonnb.lab.catalogue import resolve
from reasonnb.sudoku.board import BoardShape, agrees, is_solved
from reasonnb.systems.looped.nested import NestedNetwork
from reasonnb.systems.looped.task import LoopedTask
from reasonnb.systems.looped.transformer import LoopedTransformer, looped_loss

BOX = BoardShape(2, 2)
SMALL = dict(d_model=16, layers=1, heads=2, d_ff=32)
pytestmark = pytest.mark.usefixtures('one_thread')


def task_of(**changes): return LoopedTask(resolve('baseline', 'smoke', **changes))


def gradients(model): return [p.grad.clone() for p in model.parameters()]


def test_new_digit_names_reach_puzzle_and_solution_alike():
    named, plain = (task_of(relabel=relabel).batch(3) for relabel in (True, False))
    assert is_solved(named['solutions'], BoardShape(2, 3)).all()
    assert agrees(named['puzzles'], named['solutions']).all()
    assert not (named['solutions'] == plain['solutions']).all(1).any()
    assert torch.equal(named['puzzles'] > 0, plain['puzzles'] > 0)  # the same boards under other names


def test_each_side_is_measured_on_its_own_boards():
    task = task_of(transfer='generated', transfer_puzzles=300)
    for count, side in enumerate(('validation', 'test', 'transfer'), 5):
        task.sides[side] = task.sides[side].select(np.arange(count))
    assert task.evaluate()['n_test'] == 5
    found = task.test()
    assert (found['n_test'], found['n_test/transfer']) == (6, 7)


@pytest.mark.parametrize('once', [(), ('puzzle',), ('position',), ('puzzle', 'position')])
def test_an_input_given_once_is_gone_after_the_first_iteration(once):
    model = LoopedTransformer(BOX, **SMALL, recurrence='add', input_once=once)
    boards = torch.stack([torch.zeros(16), torch.ones(16)]).long()  # the cells of each differ by position only
    first = model.start(boards)
    later = model.step(first)[1].next_input
    for given, goes in ((first.next_input, ()), (later, once)):
        assert torch.equal(given[0], given[1]) == ('puzzle' in goes)
        assert torch.equal(given[:, :1].expand_as(given), given) == ('position' in goes)


def test_the_nested_network_learns_through_its_last_outer_cycle_only():
    "An iteration of two cycles learns what the second of two iterations of one cycle learns."
    torch.manual_seed(0)
    model, boards = NestedNetwork(BOX, 16, 1, outer=2, inner=2), torch.randint(0, 5, (3, 16))
    answers = torch.randint(1, 5, (3, 16))
    def learn(logits):
        model.zero_grad()
        looped_loss(logits[None], boards, answers)['loss'].backward()
        return gradients(model)
    in_one = learn(model.step(model.start(boards))[0])
    model.outer = 1
    state = model.step(model.start(boards))[1]
    assert all(map(torch.equal, in_one, learn(model.step(state)[0])))
