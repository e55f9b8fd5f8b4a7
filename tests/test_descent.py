"""The energy of a soft board: symmetric, with one gradient whichever way it is computed, and a descent that solves."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reasonnb.core.config import UserError
from reasonnb.sudoku.board import BoardShape, is_solved
from reasonnb.sudoku.generator import generate
from reasonnb.sudoku.symmetry import symmetry
from reasonnb.systems.descent import blocks
from reasonnb.systems.descent.board_energy import WAYS, BoardEnergy, energy_flop, logit_gradient
from reasonnb.systems.descent.chains import centred_noise, descend, descent_flop, descent_step, noise_at
from reasonnb.systems.descent.losses import descent_loss, own_rollouts, rollout_lengths

pytestmark = pytest.mark.usefixtures('one_thread')
SHAPES = [BoardShape(2, 2), BoardShape(2, 3), BoardShape(3, 2), BoardShape(3, 3)]


def network(seed=0, **sizes):
    torch.manual_seed(seed)
    return BoardEnergy(**sizes).double()


def boards(n, box, seed=0): return map(torch.as_tensor, generate(n, box, seed=seed, workers=1))


def soft(n, box, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, box.cells, box.N, generator=rng).double().softmax(-1)


MOVES = dict(
    digits=lambda box: dict(digits=torch.arange(box.N).roll(1)[None] + 1),
    bands=lambda box: dict(bands=torch.arange(box.cols).roll(1)[None]),
    rows=lambda box: dict(rows=torch.arange(box.rows).flip(0).expand(1, box.cols, -1)),
    stacks=lambda box: dict(stacks=torch.arange(box.rows).roll(1)[None]),
    columns=lambda box: dict(cols=torch.arange(box.cols).flip(0).expand(1, box.rows, -1)))


def moved_board(move, q):
    "A soft board moved as its puzzle is: cells first, then the names of the digits."
    names = move.digits[:, 1:].argsort(-1)[:, None].expand(q.shape)
    return q[:, move.source[0]].gather(-1, names)


@pytest.mark.parametrize('box', SHAPES, ids=str)
@pytest.mark.parametrize('name', MOVES)
def test_a_move_leaves_the_energy_alone(box, name):
    model, move = network(), symmetry(box, **MOVES[name](box))
    (puzzle, _), q = boards(1, box), soft(1, box)
    assert not torch.equal(move(puzzle), puzzle)
    torch.testing.assert_close(model(move(puzzle), moved_board(move, q), box), model(puzzle, q, box))


@pytest.mark.parametrize('box', SHAPES, ids=str)
def test_transposition_leaves_the_energy_alone(box):
    "Boxes that are not square turn into others, and the same weights serve those."
    model, turned = network(), BoardShape(box.cols, box.rows)
    (puzzle, _), q = boards(1, box), soft(1, box)
    cells = torch.arange(box.cells).view(box.N, box.N).T.flatten()
    torch.testing.assert_close(model(puzzle[:, cells], q[:, cells], turned), model(puzzle, q, box))


@pytest.mark.parametrize('cells', [
    [(row * 6 + 2, row * 6 + 3) for row in range(6)],  # columns of two stacks: seen by boxes only
    [(6 + column, 12 + column) for column in range(6)], [(0, 6)], [(0, 1)]])
def test_places_that_no_symmetry_exchanges_are_told_apart(cells):
    "A network that is blind to boxes, or to all places, would pass every test of symmetry; no clue helps here."
    model, box, order = network(), BoardShape(2, 3), torch.arange(36)
    puzzle, q = torch.zeros(1, 36, dtype=torch.long), soft(1, box)
    for a, b in cells: order[[a, b]] = order[[b, a]]
    assert abs(model(puzzle, q[:, order], box) - model(puzzle, q, box)).item() > 1e-6


def test_the_network_is_small():
    assert sum(p.numel() for p in BoardEnergy().parameters()) == 6_337
    with pytest.raises(UserError, match='must be at least 1'): BoardEnergy(layers=0)


@pytest.mark.parametrize('way', WAYS)
def test_the_gradient_is_that_of_the_energy(way):
    model, box = network(), BoardShape(2, 3)
    puzzles, _ = boards(3, box)
    condition, u = model.condition(puzzles), torch.randn(3, 36, 6, generator=torch.Generator().manual_seed(1)).double()
    energy, gradient = logit_gradient(model, condition, u, way)
    torch.testing.assert_close(energy, model(puzzles, u.softmax(-1)))
    along, small = torch.randn(u.shape, generator=torch.Generator().manual_seed(2)).double(), 1e-5
    def at(t): return model(puzzles, (u + t * along).softmax(-1)).detach()
    torch.testing.assert_close((at(small) - at(-small)) / (2 * small), (gradient * along).sum((1, 2)).detach())
    assert not gradient[puzzles > 0].any()


def updates(model, way, box, dtype):
    "All that an update is made of: the derivatives of the loss in the weights, through four steps."
    puzzles, solutions = boards(4, box)
    model = model.to(dtype)
    u = centred_noise(model.condition(puzzles, box), .5, torch.Generator().manual_seed(3)).requires_grad_()
    loss = descent_loss(model, puzzles, solutions, u, box, steps=4, contrast=.1, way=way)['loss']
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [u, *model.parameters()])])


@pytest.mark.parametrize('box', SHAPES, ids=str)
@pytest.mark.parametrize('way', ['fused', 'explicit'])
def test_ways_to_an_update_agree(way, box):
    expected = updates(network(layers=3), 'autograd', box, torch.float64)
    found = updates(network(layers=3), way, box, torch.float64)
    assert (found - expected).abs().max() < 1e-6 * expected.abs().max()


@pytest.mark.parametrize('box', SHAPES, ids=str)
def test_kernels_compute_what_the_tensor_operations_do(box, monkeypatch):
    expected, found = (updates(network(), 'fused', box, dtype) for dtype in (torch.float64, torch.float32))
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    called = []
    monkeypatch.setattr(blocks.kernels, 'derivatives', lambda *arrays: called.append(1))
    updates(network(), 'fused', box, torch.float32)
    assert len(called) == 4  # a step each; the energies of the contrastive term are tensor operations


@pytest.fixture(scope='module')
def trained():
    "A toy that has learned 4x4 boards."
    torch.manual_seed(0)
    box, rng = BoardShape(2, 2), torch.Generator().manual_seed(0)
    model = BoardEnergy(width=8, hidden=16)
    (puzzles, solutions), steps = boards(600, box), 250
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, betas=(.9, .95))
    for step in range(steps):
        for group in optimizer.param_groups: group['lr'] = 5e-3 * min(1, step / 20, 2 * (1 - step / steps))
        rows = torch.randint(500, (16,), generator=rng)
        u = centred_noise(model.condition(puzzles[rows]), .5, rng)
        u = own_rollouts(model, puzzles[rows], u, rollout_lengths(16, .5 * (step > 40), 8, rng), box)
        optimizer.zero_grad()
        descent_loss(model, puzzles[rows], solutions[rows], u, box, steps=4)['loss'].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
        optimizer.step()
    return model.eval(), puzzles[500:], solutions[500:]


def test_descent_solves_and_the_lowest_energy_chooses(trained):
    model, puzzles, solutions = trained
    found = descend(model, puzzles, steps=24, chains=4)
    right = (found.chains == solutions[:, None]).all(-1)
    assert right.double().mean() > .5 and found.solved.double().mean() > .8
    assert torch.equal(found.chosen, found.energies.argmin(1))
    rows = torch.arange(len(puzzles))
    assert torch.equal(found.boards, found.chains[rows, found.chosen])
    assert (found.solved >= right[rows, found.chosen]).all()
    assert torch.equal(found.solved, torch.as_tensor(is_solved(found.boards, BoardShape(2, 2))))
    assert torch.equal(found.answers, torch.where(found.solved[:, None], found.boards, 0))


def test_energy_falls_along_a_descent(trained):
    model, puzzles, _ = trained
    falls = descend(model, puzzles, steps=24, chains=2, keep=True).falls
    assert (falls.diff(dim=0) <= 1e-3).double().mean() > .95
    assert (falls[-1] < falls[0]).all()


def test_truth_lies_below_the_wrong_answers(trained):
    model, puzzles, solutions = trained
    true = model(puzzles, F.one_hot(solutions.long() - 1, 4).float())
    wrong = F.one_hot(solutions.long() % 4, 4).float()
    assert (true < model(puzzles, wrong)).double().mean() > .95


def test_one_batch_can_be_learned_by_heart():
    torch.manual_seed(1)
    box, model, rng = BoardShape(2, 2), BoardEnergy(), torch.Generator().manual_seed(1)
    puzzles, solutions = boards(8, box)
    optimizer, losses = torch.optim.Adam(model.parameters(), 5e-3), []
    for _ in range(120):
        u = centred_noise(model.condition(puzzles), .5, rng)
        optimizer.zero_grad()
        terms = descent_loss(model, puzzles, solutions, u, box, steps=4)
        terms['loss'].backward()
        optimizer.step()
        losses.append(terms['loss_last'].item())
    assert losses[0] > 1 and np.mean(losses[-5:]) < .1


def test_a_puzzle_without_solution_is_not_solved_and_any_solution_counts(trained):
    model, puzzles, solutions = trained
    box, broken = BoardShape(2, 2), solutions[:1].clone()
    broken[0, 2:] = 0
    broken[0, 1] = broken[0, 0]
    found = descend(model, torch.cat([broken, torch.zeros_like(broken)]), box, steps=24, chains=4)
    assert not found.solved[0] and not found.answers[0].any()
    assert bool(found.solved[1]) == bool(is_solved(found.boards[1], box))


def test_chains_of_a_puzzle_do_not_depend_on_the_others(trained):
    model, puzzles, _ = trained
    settings = dict(steps=2, chains=3, noise=.3, seed=5)  # so few that the starts still show
    whole, few = descend(model, puzzles[:7], block=4, **settings), descend(model, puzzles[:3], block=1, **settings)
    torch.testing.assert_close(whole.energies[:3], few.energies, atol=1e-3, rtol=1e-4)
    other = descend(model, puzzles[:3], **settings | dict(seed=6))
    assert (other.energies - few.energies).abs().max() > 1e-2


def test_noise_ends_before_the_descent():
    sizes = [noise_at(step, 40, .5) for step in range(40)]
    assert sizes[0] == .5 and all(a > b for a, b in zip(sizes[:29], sizes[1:30])) and not any(sizes[30:])


def test_each_board_goes_its_own_number_of_steps():
    model, box = network(), BoardShape(2, 2)
    puzzles, _ = boards(4, box)
    lengths = torch.tensor([5, 2, 2, 0])
    condition = model.condition(puzzles)
    u = start = centred_noise(condition, .5, torch.Generator().manual_seed(0))
    found, reached = own_rollouts(model, puzzles, start, lengths, box), [start]
    for _ in range(5):
        u, _ = descent_step(model, condition, u)
        reached.append(u.detach())
    for row, length in enumerate(lengths): torch.testing.assert_close(found[row], reached[length][row])
    assert not found.requires_grad
    drawn = rollout_lengths(400, .5, 6, torch.Generator().manual_seed(0))
    assert set(drawn[:200].tolist()) == {1, 2, 3, 4, 5, 6} and not drawn[200:].any() and (drawn.diff() <= 0).all()
    with pytest.raises(UserError, match='must fall'): own_rollouts(model, puzzles, start, lengths.flip(0), box)


def test_contrast_counts_wrong_boards_only(trained):
    model, puzzles, solutions = trained
    right = 30. * F.one_hot(solutions.long() - 1, 4)
    weight = model.log_step.detach().clone()
    with torch.no_grad():
        model.log_step.fill_(-30.)  # steps that go nowhere
        terms = [descent_loss(model, puzzles, solutions, u.float(), steps=1, contrast=2.) for u in (right, -right)]
        model.log_step.copy_(weight)
    assert terms[0]['loss_contrast'] == 0 < terms[1]['loss_contrast']
    for found in terms:
        torch.testing.assert_close(found['loss'], found['loss_digit'] + 2 * found['loss_contrast'])


@pytest.mark.parametrize('settings, words', [
    (dict(chains=0), 'at least one chain'), (dict(steps=0), 'at least one step'), (dict(noise=-1.), 'noise=-1'),
    (dict(noise=float('nan')), 'noise=nan'), (dict(box=BoardShape(3, 3)), '36 cells, a board of 3x3 boxes has 81')])
def test_requests_that_make_no_sense(settings, words):
    puzzles, _ = boards(2, BoardShape(2, 3))
    with pytest.raises(UserError, match=words): descend(BoardEnergy(), puzzles, **settings)


@pytest.mark.parametrize('puzzles, words', [
    (torch.zeros(36), r'\(36,\)'), (torch.zeros(1, 35), '35 cells do not name a board'),
    (torch.full((1, 36), 7), 'digits from 7 to 7'), (torch.full((1, 36), -1), 'digits from -1'),
    (torch.zeros(0, 36), 'no puzzles')])
def test_puzzles_that_are_none(puzzles, words):
    with pytest.raises(UserError, match=words): descend(BoardEnergy(), puzzles)


def test_an_energy_that_is_no_number_is_named():
    puzzles, _ = boards(3, BoardShape(2, 3))
    model = BoardEnergy()
    with torch.no_grad(): model.head[0] = float('nan')
    with pytest.raises(UserError, match='energy of puzzle 0, chain 0 is nan'): descend(model, puzzles, steps=2)
    with pytest.raises(UserError, match='at least one unrolled step'):
        descent_loss(model, puzzles, puzzles, torch.zeros(3, 36, 6), steps=0)
    with pytest.raises(UserError, match='unknown way'):
        logit_gradient(model, model.condition(puzzles), torch.zeros(3, 36, 6), 'forward')


def test_cost_is_that_of_the_products():
    "Own matrices by hand for a board of 2x2 boxes: 64 candidates, sets of two and four."
    model, box = BoardEnergy(width=3, hidden=5, layers=1), BoardShape(2, 2)
    across, cell, line, square = 32 + 32, 16, 16 + 16, 16
    assert energy_flop(model, box) == 2 * (15 * (64 + across + cell + line + square + 64) + 64 * 2 * 3)
    assert descent_flop(model, box, 10) == 21 * energy_flop(model, box)
