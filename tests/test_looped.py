"""What a looped network is given, when, and on which boards: slips that change numbers without an error."""
import json
import os
import shutil
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from reasonnb.core.gradients import accumulate_gradients
from reasonnb.lab.catalogue import resolve
from reasonnb.sudoku.board import BoardShape, agrees, is_solved
from reasonnb.systems.looped.measures import best_iteration, cells, solved
from reasonnb.systems.looped.nested import NestedNetwork
from reasonnb.systems.looped.recurrence import Recurrence
from reasonnb.systems.looped.task import LoopedTask, build_task
from reasonnb.systems.looped.transformer import LoopedTransformer, looped_loss
from toy import REPO

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
    parts = dict(puzzle=model.embed.puzzle(boards), position=model.position.encoding())
    assert torch.allclose(later + sum(parts[name] for name in once), first.next_input, atol=1e-6)


def test_later_logits_have_a_slope_in_earlier_ones():
    "The prediction enters the next iteration with its history, so that all iterations learn together."
    model = LoopedTransformer(BOX, **SMALL)
    first, state = model.step(model.start(torch.zeros(1, 16).long()))
    second = model.step(state)[0]
    assert torch.autograd.grad(second[..., 0].sum(), first)[0].abs().max() > 0


@pytest.mark.parametrize('done, used', [(0, 0), (1, 0), (2, 1), (3, 1), (4, 1), (7, 1)])
def test_iterations_beyond_the_trained_ones_use_the_last_stack(done, used):
    model = LoopedTransformer(BOX, **SMALL, untied_stacks=2, train_iterations=4)
    state = model.start(torch.zeros(1, 16).long())
    for _ in range(done): state = model.step(state)[1]
    before = model.step(state)[0]
    for stack in (0, 1):
        with torch.no_grad():
            for p in model.blocks[stack].parameters(): p.add_(.1)
        assert torch.equal(model.step(state)[0], before) == (stack < used)


def test_skipped_iterations_give_a_state_and_no_gradient():
    torch.manual_seed(0)
    model, boards = LoopedTransformer(BOX, **SMALL, recurrence='add'), torch.randint(0, 5, (3, 16))
    answers = torch.randint(1, 5, (3, 16))
    def learn(logits):
        model.zero_grad()
        looped_loss(logits, boards, answers)['loss'].backward()
        return gradients(model)
    skipped = model(boards, 2, skip=3)
    assert torch.allclose(skipped, model(boards, 5)[3:])
    with torch.no_grad():
        state = model.start(boards)
        for _ in range(3): state = model.step(state)[1]
    inputs = model.start(boards).recurrent_input  # the tables learn, the state does not
    state = state._replace(next_input=inputs, recurrent_input=inputs)
    by_hand = learn(torch.stack(list(islice(model.iterate(boards, state), 2))))
    found = learn(skipped)
    assert all(map(torch.allclose, found, by_hand)) and model.embed.weight.grad.abs().max() > 0


def test_pieces_of_a_batch_add_up_to_its_gradient():
    "Boards count by their blanks, in the loss as in the weights of the batch."
    task = task_of()
    batch = task.batch(0)
    assert len(set(batch.weights.tolist())) > 1
    found = []
    for pieces in (1, 4):
        terms = accumulate_gradients(task, batch, pieces)
        found.append([*gradients(task.model), terms['loss'].detach()])
    assert all(torch.allclose(*pair, rtol=1e-4, atol=1e-6) for pair in zip(*found))


def test_headline_numbers_are_read_at_the_iterations_asked_for():
    task = task_of(answer_iterations=2)
    evaluated, tested = task.evaluate(), task.test()
    assert 'puzzle_accuracy@2' in evaluated and 'puzzle_accuracy@4' not in evaluated
    assert tested['cell_accuracy'] == tested['cell_accuracy@2'] != tested['cell_accuracy@4']


def test_a_job_answers_after_more_iterations_than_it_trains(tmp_path):
    "The command, its job notebook and the record: four iterations are trained, the eighth is the headline's."
    for part in ('nbs/jobs', 'data/logs'): shutil.copytree(REPO/part, tmp_path/part)
    shutil.copy(REPO/'settings.ini', tmp_path/'settings.ini')
    env = os.environ | {'REASONNB_ROOT': str(tmp_path), 'REASONNB_DATA': str(tmp_path/'data'), 'PYTHONPATH': str(REPO),
                        'OMP_NUM_THREADS': '1'}
    changes = [f'--set={change}' for change in ('answer_iterations=8', 'steps=60', 'lr=2e-2')]
    done = subprocess.run([sys.executable, '-m', 'reasonnb', 'run', 'recur_add', '--scale', 'smoke', *changes],
                          cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    path, = (tmp_path/'papermill_runs/own').rglob('record.json')
    record = json.loads(path.read_text())
    assert (record['config']['iterations'], record['config']['answer_iterations']) == (4, 8)
    found = record['metrics']
    assert found['cell_accuracy'] == found['cell_accuracy@8'] != found['cell_accuracy@4'] == cells(record)
    assert {f'puzzle_accuracy@{n}' for n in range(1, 9)} <= set(found)
    assert solved('easiest')(record) == found['puzzle_accuracy/rating_0']
    assert solved('easiest', trained=True)(record) == found['puzzle_accuracy/trained_rating_0']
    assert solved(trained=True)(record) == found['puzzle_accuracy@4']
    assert best_iteration(record) == found['best_iteration'] / 8 <= 1
    evaluated = [row for row in record['curve'] if row['kind'] == 'eval'][-1]
    assert 'puzzle_accuracy@8' in evaluated and 'puzzle_accuracy@4' not in evaluated


def test_late_batches_follow_seed_and_step_and_begin_late():
    changes = dict(late_share=.5, late_iterations=(1, 2), relabel=False)
    one, other = (task_of(seed=seed, **changes) for seed in (0, 1))
    late = [[int(task.batch(step)['skip'][0]) for step in range(30)] for task in (one, other)]
    assert set(late[0]) == {0, 1, 2} and late[0] != late[1]
    batch = one.batch(late[0].index(2))
    loss = one.backward(batch)['loss']
    logits = one.model(batch['puzzles'], one.config.iterations, 2)
    assert torch.allclose(loss, looped_loss(logits, batch['puzzles'], batch['solutions'])['loss'])


def stays(task, step):
    "The slots after a step in which no weight changes."
    task.backward(task.batch(step))
    return task.slots


def test_a_new_board_finds_an_empty_slot():
    task, fresh = (build_task(resolve('carry', 'smoke')) for _ in range(2))
    stays(task, 0)['solved'] = torch.arange(16) % 2 == 0  # every other board leaves
    found, wanted = stays(task, 1), stays(fresh, 1)
    for name in ('puzzles', 'solutions', 'hidden', 'prediction'):
        same = torch.isclose(found[name], wanted[name], atol=1e-5).flatten(1).all(1)
        assert same.tolist() == [True, False] * 8, name


def test_a_board_is_solved_by_its_blanks():
    task = build_task(resolve('carry', 'smoke'))
    answers, clues = stays(task, 0)['prediction'].argmax(-1) + 1, task.slots['puzzles']
    assert (answers != clues)[clues > 0].any()  # the network has some of the clues wrong
    task.slots, batch = {}, task.batch(0)
    batch.tensors['solutions'] = torch.where(clues > 0, clues, answers).to(clues.dtype)
    assert task.backward(batch)['solved'] == 1
    task.slots = {}
    batch['solutions'][0] = batch['solutions'][0] % 6 + 1
    assert task.backward(batch)['solved'] == 15 / 16


@torch.no_grad()
def test_an_open_gate_keeps_the_state_and_a_closed_one_replaces_it():
    new, state, streams = torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.randn(2, 3, 4, 4)
    gated, several = Recurrence('gated', 4), Recurrence('streams', 4)
    for logit, kept, kept_streams in ((40., state, streams), (-40., new, new[..., None, :].expand_as(streams))):
        gated.gate.bias.fill_(logit)
        several.keep.fill_(logit)
        shown, hidden = gated.write(new, state)
        assert torch.allclose(hidden, kept, atol=1e-5) and torch.equal(shown, hidden)
        assert torch.allclose(several.write(new, streams)[1], kept_streams, atol=1e-5)
    assert torch.equal(gated.read(new, state), new)  # the blocks never see a gated state


def test_the_readout_of_a_gated_network_sees_its_state():
    model = LoopedTransformer(BOX, d_model=8, layers=1, heads=2, d_ff=8, recurrence='gated').eval()
    _, state = model.step(model.start(torch.randint(0, 5, (2, 16))))
    logits, state = model.step(state)
    assert torch.allclose(logits, model.head(state.hidden), atol=1e-6)


def test_the_nested_network_is_the_recursion_of_the_reference():
    "Reasoning sees puzzle and answer; the answer sees the reasoning only."
    torch.manual_seed(0)
    model, boards = NestedNetwork(BOX, 16, 2, outer=2, inner=3), torch.randint(0, 5, (3, 16))
    x = model.start(boards).next_input
    z, y = model.first_hidden[:, None, None].expand(2, 3, 16, 16)
    def network(h):
        for block in model.blocks: h = block(h)
        return h
    for _ in range(2):
        for _ in range(3): z = network(z + y + x)
        y = network(y + z)
    assert torch.allclose(model(boards, 1)[0], model.head(y), atol=1e-6)


def test_the_arithmetic_of_the_nested_network_is_what_torch_counts():
    model = NestedNetwork(BOX, 16, 2, outer=2, inner=3)
    with FlopCounterMode(display=False) as counter, torch.no_grad(): model(torch.zeros(1, 16).long(), 2)
    assert model.flop(2) == counter.get_total_flops()


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
