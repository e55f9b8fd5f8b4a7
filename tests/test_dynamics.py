"Loops as maps: derivatives against dense ones, known orbits, and leaving a batch early without changing an answer."
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from reasonnb.core.config import UserError
from reasonnb.core.statistics import wilson
from reasonnb.nn import dynamics
from reasonnb.sudoku.board import BoardShape, is_solved
from reasonnb.systems.looped.recurrence import READOUTS, RECURRENCES
from reasonnb.nn.dynamics import (from_vector, precision_gap, push, eval_mode, select, solve_adaptively, spectral_radius,
                                  stability, state_after, to_vector, trajectory, state_parts)
from reasonnb.sudoku.generator import generate
from reasonnb.nn.loop import Looped, State
from reasonnb.systems.looped.transformer import LoopedTransformer
from reasonnb.systems.looped.nested import NestedNetwork

BOX = BoardShape(2, 2)


class Loop(Looped):
    "Notes of one number per cell that follow `f`; the answer is 2 where they are above a half, else 1."
    def __init__(self, f, first=0.):
        super().__init__()
        self.f, self.first, self.anchor = f, first, nn.Parameter(torch.zeros(()))

    def start(self, puzzles):
        return State(puzzles, puzzles, hidden=torch.zeros(*puzzles.shape, 1, device=puzzles.device, dtype=self.anchor.dtype) + self.first)

    def step(self, state):
        s = self.f(state.hidden)
        return torch.cat([torch.full_like(s, 0.5), s], -1), state._replace(hidden=s, iteration=state.iteration + 1)


class Matrices(Looped):
    "Notes of `(batch, size)` times a matrix per board."
    def __init__(self, matrices):
        super().__init__()
        self.matrices = nn.Parameter(matrices)

    def start(self, puzzles): return State(puzzles, puzzles, hidden=torch.ones(self.matrices.shape[:2]))

    def step(self, state):
        s = torch.einsum('bij,bj->bi', self.matrices, state.hidden)
        return s[:, None], state._replace(hidden=s)


@pytest.fixture(scope='module')
def boards(): return tuple(torch.as_tensor(a).long() for a in generate(12, BOX, seed=3, clues=8))


def network(**more):
    torch.manual_seed(0)
    return LoopedTransformer(BOX, d_model=16, layers=1, heads=2, d_ff=32, **more)


def dense(model, state, row):
    "The Jacobian of one board's iteration, in reverse mode."
    one = select(state, torch.tensor([row]))
    with sdpa_kernel(SDPBackend.MATH):
        return torch.func.jacrev(lambda x: to_vector(model.step(from_vector(x[None], one))[1])[0])(to_vector(one)[0]).detach()


KINDS = [dict(recurrence=c) for c in RECURRENCES] + [dict(recurrence=c, readout=a) for a in READOUTS[1:] for c in ('none', 'gated')] + [
    dict(recurrence='add', feedback=False), dict(recurrence='concat', position='rope'), dict(recurrence='concat', position='relative'),
    dict(recurrence='none', mixing='mlp')]


@pytest.mark.parametrize('kind', KINDS, ids=lambda k: '-'.join(map(str, k.values())))
def test_a_push_is_the_dense_jacobian_times_the_direction(kind, boards):
    model = network(**kind).double()
    state = state_after(model, boards[0][:2], 3)
    x = to_vector(state)
    assert all(torch.equal(getattr(from_vector(x, state), name), getattr(state, name)) for name in state_parts(state))
    direction = torch.randn(x.shape, dtype=torch.double)
    with eval_mode(model):
        pushed, after = push(model, state, direction)
        near, _ = push(model, state, direction, exact=False)
        assert torch.allclose(to_vector(after), to_vector(model.step(state)[1]))
    jacobians = [dense(model, state, row) for row in range(2)]
    assert all(torch.allclose(p, J @ d, atol=1e-8) for p, J, d in zip(pushed, jacobians, direction))
    assert torch.allclose(pushed, near, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('carry', ['none', 'gated', 'concat', 'memory'])
def test_the_growth_rate_is_the_largest_eigenvalue_of_a_network(carry, boards):
    model = network(recurrence=carry).double()
    with torch.no_grad():
        for p in model.parameters(): p *= 1.5  # away from the dull first weights
    state = state_after(model, boards[0][:4], 5)
    true = torch.stack([torch.linalg.eigvals(dense(model, state, row)).abs().max() for row in range(4)])
    found = spectral_radius(model, state, pushes=300)
    assert torch.allclose(found.rate, true, rtol=.03), (found, true)


def rotation(angle): return torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


@pytest.mark.parametrize('angle', [.1, .5, 1., math.pi / 2, 3.])
def test_complex_pairs_in_a_slanted_basis(angle):
    slant = torch.tensor([[1., 5.], [0., .3]])
    loop = Matrices(torch.stack([r * slant @ rotation(angle) @ slant.inverse() for r in (.5, 1., 7.)]))
    found = spectral_radius(loop, loop.start(torch.zeros(3, 1)), pushes=200)
    assert torch.allclose(found.rate, torch.tensor([.5, 1., 7.]), rtol=.01)
    assert (found.drift < .05).all()


def test_real_opposite_defective_and_vanishing():
    cases = [torch.diag(torch.tensor([2., -2.])), torch.tensor([[.8, 1.], [0., .8]]), torch.tensor([[0., 1.], [0., 0.]]), torch.zeros(2, 2)]
    loop = Matrices(torch.stack(cases))
    found = spectral_radius(loop, loop.start(torch.zeros(4, 1)), pushes=400)
    assert torch.allclose(found.rate, torch.tensor([2., .8, 0., 0.]), atol=.01) and not found.drift.isnan().any()


def test_growth_along_the_way():
    logistic, points = Loop(lambda s: 4 * s * (1 - s)), torch.tensor([.1, .2, .3])[:, None, None]
    state = logistic.start(torch.zeros(3, 1))._replace(hidden=points)
    assert torch.allclose(spectral_radius(logistic, state, 1000, moving=True).rate, torch.full((3,), 2.), rtol=.05)
    assert torch.allclose(spectral_radius(logistic, state).rate, (4 - 8 * points[:, 0, 0]).abs())
    # an attracting cycle of two at r = 3.2: the rate is the root of the product of both slopes, 4 + 2 r - r^2
    cycle = Loop(lambda s: 3.2 * s * (1 - s), .3)
    at = state_after(cycle, torch.zeros(1, 1), 300)
    assert spectral_radius(cycle, at, 200, moving=True).rate.item() == pytest.approx(abs(4 + 2 * 3.2 - 3.2 ** 2) ** .5, rel=1e-2)
    path = trajectory(cycle, torch.zeros(1, 1), 300)
    assert path.relative_change[-1] > .1 and path.over_two[-1] < 1e-5


def test_the_nested_network_by_differences(boards):
    class Whole(NestedNetwork):
        "Nothing detached: the same map with its whole derivative."
        def step(self, state):
            (z, y), x = state.hidden.unbind(-2), state.next_input
            for _ in range(self.outer): z, y = self._cycle(x, z, y)
            logits = self.head(y)
            return logits, State(state.recurrent_input, state.recurrent_input, logits.softmax(-1), torch.stack([z, y], -2), state.iteration + 1)
    torch.manual_seed(0)
    cut = NestedNetwork(BOX, d_model=8, layers=1, outer=2, inner=2).double()
    whole = Whole(BOX, d_model=8, layers=1, outer=2, inner=2).double()
    whole.load_state_dict(cut.state_dict())
    state = state_after(cut, boards[0][:2], 3)
    with pytest.raises(UserError, match='exact=False'): spectral_radius(cut, state)
    rates = spectral_radius(whole, state).rate, spectral_radius(cut, state, exact=False).rate
    assert torch.allclose(*rates, rtol=1e-3) and (rates[0] > 0).all()


def test_nothing_travels_or_not_yet(boards):
    deaf = network(feedback=False)
    with pytest.raises(UserError, match='neither prediction nor hidden state'): trajectory(deaf, boards[0], 2)
    fresh = network(recurrence='add', start='random')
    with pytest.raises(UserError, match='take a later state'): spectral_radius(fresh, fresh.start(boards[0]))


def test_states_are_selected_part_by_part(boards):
    state, rows = state_after(network(recurrence='streams'), boards[0], 2), torch.tensor([True, False] * 6)
    few = select(state, rows)
    assert all(torch.equal(a, b[rows]) for a, b in zip(few[:4], state[:4])) and few.iteration == 2
    assert select(State(rows, rows), rows).hidden is None and len(select(State(rows, rows), rows).next_input) == 6
    pair = State(torch.arange(3), torch.arange(3), hidden=State(torch.arange(3), torch.arange(3)))
    assert select(pair, torch.tensor([2])).hidden.next_input.tolist() == [2]


def test_the_mode_and_the_numbers_of_a_network_with_dropout(boards):
    model = network(recurrence='add', dropout=.5)
    model.train()
    a, b = (trajectory(model, boards[0], 4).size for _ in range(2))
    assert torch.equal(a, b) and model.training
    assert spectral_radius(model, state_after(model, boards[0], 2), 4).rate.requires_grad is False and model.training
    with pytest.raises(ZeroDivisionError), eval_mode(model): 1 / 0
    assert model.training and torch.is_grad_enabled()


@pytest.mark.parametrize('patience', [1, 2, 5])
def test_a_board_that_leaves_has_the_answer_of_the_full_loop(patience, boards):
    model, puzzles = network(recurrence='gated').double(), boards[0]
    with torch.no_grad():
        for p in model.parameters(): p *= 1.5
    with eval_mode(model): full = torch.where(puzzles == 0, model(puzzles, 60).argmax(-1) + 1, puzzles)
    path = trajectory(model, puzzles, 60)
    found = solve_adaptively(model, puzzles, 60, patience)
    assert torch.equal(found.answers, full[found.iterations - 1, torch.arange(len(puzzles))])
    for board, n in enumerate(found.iterations.tolist()):
        still = ~path.changed[:, board]
        first = next((t for t in range(patience, 60) if still[t - patience + 1:t + 1].all()), None)
        assert (n, found.stopped[board].item()) == ((60, False) if first is None else (first + 1, True))
    assert found.iterations.float().mean() < 60
    alone = [solve_adaptively(model, p[None], 60, patience) for p in puzzles]
    assert torch.equal(torch.cat([a.answers for a in alone]), found.answers)


def test_memory_does_not_grow_with_the_loop(boards, monkeypatch):
    "No more than three states are alive at once however long the loop."
    import weakref
    alive, most, real = [], [], dynamics.to_vector
    def watched(state):
        x = real(state)
        alive.append(weakref.ref(x))
        most.append(sum(r() is not None for r in alive))
        return x
    monkeypatch.setattr(dynamics, 'to_vector', watched)
    trajectory(network(recurrence='add'), boards[0][:2], 20)
    assert max(most) <= 4 and most[-1] == most[5]


def test_a_verifier_is_asked_only_where_it_is_given(boards):
    puzzles, solutions = boards
    right = Loop(lambda s: s + 1, -3.)
    right.step = lambda state: (nn.functional.one_hot(solutions[:state.next_input.shape[0]] - 1, 4) * (1. if state.iteration >= 2 else -1.),
                                state._replace(iteration=state.iteration + 1))
    free = solve_adaptively(right, puzzles[:1], 20, patience=0, verifier=partial(is_solved, box=BOX))
    assert free.iterations.tolist() == [3] and free.stopped.all() and torch.equal(free.answers, solutions[:1])
    settled = solve_adaptively(right, puzzles[:1], 20, patience=3, verifier=is_solved)
    assert settled.iterations.tolist() == [6]
    never = solve_adaptively(right, puzzles[:1], 9, patience=1, verifier=lambda a: torch.zeros(len(a), dtype=torch.bool))
    assert never.iterations.tolist() == [9] and not never.stopped.any()
    full = solve_adaptively(right, solutions[:1], 9, patience=2)
    assert full.iterations.tolist() == [2] and torch.equal(full.answers, solutions[:1])


def test_precision(boards):
    puzzles = torch.zeros(20, 4).long()
    calm = precision_gap(Loop(lambda s: s / 3 + .3), puzzles, 30, 'float64')
    assert calm['distance'].max() < 1e-6 and calm['iteration'].tolist() == list(range(1, 31))
    wild = precision_gap(Loop(lambda s: 4 * s * (1 - s), .1234), puzzles, 60, 'float64')
    assert wild['distance'][:5].max() < 1e-5 and wild['different'][35:].max() == 1
    model = network(recurrence='gated')
    half, double = (precision_gap(model, boards[0], 8, other) for other in ('bfloat16', 'float64'))
    assert double['distance'].max() < 1e-4 < half['distance'].max() < .2
    with torch.autocast('cpu', torch.bfloat16): assert precision_gap(model, boards[0], 8, 'float64')['distance'].max() < 1e-4
    assert next(model.parameters()).dtype == torch.float32
    with pytest.raises(UserError, match='float16'): precision_gap(model, boards[0], 8, 'float16')


def record(values, **more): return dict(metrics={f'puzzle_accuracy@{n}': v for n, v in values.items()} | dict(puzzle_accuracy=.5) | more)


@pytest.mark.parametrize('values, stable', [
    ({16: .9, 64: .9}, True), ({16: .92, 64: .90}, True), ({16: .921, 64: .90}, False), ({128: .5, 16: .8, 64: .9}, False),
    ({9: .5, 16: .8, 128: .81}, True), ({16: .9, 64: None}, False), ({16: .9, 64: math.nan}, False), ({16: 0., 64: 0.}, True)])
def test_stable_seeds(values, stable): assert stability([record(values)]).rate == wilson(int(stable), 1)


def test_stability_of_many_seeds():
    good, bad = record({16: .8, 64: .9}), record({16: .9, 64: .1})
    found = stability([good] * 3 + [bad, dict(metrics=dict(diverged=1., loss=None))])
    assert found.rate == wilson(3, 5) and found.iterations == 64 and found.best[3] == .9 and found.drop[3] == pytest.approx(.8)
    assert stability([good, bad], tolerance=.8).rate.value == 1
    assert stability([dict(metrics=dict(diverged=1.))]).rate.value == 0
    for records in ([], [record({16: .8})], [good, record({16: .8, 32: .9})], [good, record({})]):
        with pytest.raises(UserError, match='same two or more'): stability(records)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU here')
def test_on_a_gpu(boards):
    model = network(recurrence='gated').cuda()
    state = state_after(model, boards[0], 3)
    assert spectral_radius(model, state, 30).rate.is_cuda and trajectory(model, boards[0], 5).size.is_cuda
    assert solve_adaptively(model, boards[0], 20).answers.is_cuda and len(precision_gap(model, boards[0], 5)) == 5
