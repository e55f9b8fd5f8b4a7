"""Predicted memory against counted and allocated bytes, on sizes and paths that the notebook does not try."""
import gc, json, weakref
from itertools import islice

import pytest, torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from reasonnb.core.config import UserError
from reasonnb.core.gradients import Batch, accumulate_gradients
from reasonnb.core.optimizers import make_optimizer
from reasonnb.systems.looped.config import LoopedConfig
from reasonnb.systems.looped.transformer import looped_loss
from reasonnb.systems.looped.memory import (GIB, RESERVE, check_memory, checkpointed, footprint, measure_activations,
                                            needed_accumulation, predict_memory)
from reasonnb.nn.activation_memory import GPUKernels, saved_bytes
from reasonnb.systems.looped.task import build_model

SMALL = dict(box=(2, 3), d_model=32, layers=2, heads=2, d_ff=64)


def config(**changes): return LoopedConfig(**SMALL | dict(batch_size=48, iterations=6) | changes)


def blank(model, boards): return torch.zeros(boards, model.box.cells, dtype=torch.long)


def unrolled(model, puzzles, iterations): return torch.stack(list(islice(model.iterate(puzzles), iterations)))


def loss_of(logits, puzzles): return looped_loss(logits, puzzles, puzzles + 1)['loss']


def counted(model, boards, iterations, precision, forward=unrolled):
    puzzles = blank(model, boards)
    with GPUKernels(), torch.autocast('cpu', torch.bfloat16, enabled=precision == 'bfloat16'):
        return saved_bytes(lambda: loss_of(forward(model, puzzles, iterations), puzzles), model)


def allocated(action, path):
    "Largest sum of bytes allocated above those before, as the profiler saw it."
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen: action()
    seen.export_chrome_trace(str(path))
    events = [e for e in json.loads(path.read_text())['traceEvents'] if e.get('name') == '[memory]']
    now = most = 0
    for e in sorted(events, key=lambda e: e['ts']):
        now += e['args']['Bytes']
        most = max(most, now)
    return most


class Task:
    "The gradient of a looped network on blank boards."
    def __init__(self, c): self.model, self.iterations = build_model(c), c.iterations
    def batch(self, n): return Batch(dict(puzzles=blank(self.model, n)), torch.ones(n))
    def backward(self, batch):
        puzzles = batch['puzzles']
        terms = looped_loss(unrolled(self.model, puzzles, self.iterations), puzzles, puzzles + 1)
        terms['loss'].backward()
        return terms


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
@pytest.mark.parametrize('changes', [
    dict(), dict(recurrence='add', input_once=('puzzle',)), dict(recurrence='memory'), dict(position='alibi'),
    dict(activation='relu2'), dict(inputs='project_add'), dict(untied_stacks=3), dict(supervise='last'),
    dict(network='nested', outer=1, inner=3)], ids=str)
def test_a_third_size_is_predicted_within_one_percent(changes, precision):
    model = build_model(config(**changes))
    predicted = measure_activations(model, precision)
    weights = 4 * sum(p.numel() for p in model.parameters())
    copies = weights if 'untied_stacks' in changes else 0  # autocast's, of sets of blocks not yet used
    for boards, iterations in ((31, 6), (7, 9)):
        wanted = counted(model, boards, iterations, precision)
        assert predicted(boards, iterations) == pytest.approx(wanted, rel=0.01, abs=copies)


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_checkpointed_states_are_predicted_too(precision):
    model = build_model(config(recurrence='add'))
    held = measure_activations(model, precision, forward=checkpointed)
    assert held(31, 9) == pytest.approx(counted(model, 31, 9, precision, forward=checkpointed), rel=0.01)
    kept = measure_activations(model, precision)
    again = footprint(config(recurrence='add', precision=precision), checkpoints=True)
    activations = again.memory(31, iterations=9).activations
    assert activations == pytest.approx(held(31, 9) + kept(31, 2) - kept(31, 1), rel=0.01)
    assert activations < kept(31, 9) / 4


def test_counting_leaves_nothing_behind():
    model, held = build_model(config()), []
    puzzles = blank(model, 2)
    def loss():
        logits = model(puzzles, 2)
        held.append(weakref.ref(logits))
        return looped_loss(logits, puzzles, puzzles + 1)['loss']
    saved_bytes(loss, model)
    assert held[0]() is None


def test_asking_draws_no_random_numbers_of_the_run():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    footprint(config(optimizer='muon', sam_rho=0.1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize('accumulate', [1, 4])
def test_a_real_gradient_allocates_what_is_predicted(accumulate, tmp_path):
    c = config(dropout=0., accumulate=accumulate, iterations=12)
    task, memory = Task(c), predict_memory(c)
    batch = task.batch(c.batch_size)
    seen = allocated(lambda: accumulate_gradients(task, batch, accumulate), tmp_path / 'trace.json')
    assert memory.activations == pytest.approx(seen, rel=0.08)


def test_the_models_own_forward_pass_needs_no_more(tmp_path):
    c = config(dropout=0.)
    model = build_model(c)
    puzzles = blank(model, 24)
    def run(): looped_loss(model(puzzles, 6), puzzles, puzzles + 1)['loss'].backward()
    assert allocated(run, tmp_path / 'trace.json') == pytest.approx(footprint(c).memory(24).activations, rel=0.12)


def test_sam_holds_as_many_copies_as_are_counted():
    c = LoopedConfig(sam_rho=0.1)
    model, found = nn.Linear(37, 41, bias=False), []
    optimizer = make_optimizer(model, c)
    def gradient():
        for p in model.parameters():
            p.grad = None
        model(torch.ones(1, 37)).sum().backward()
        now = [p.grad for p in model.parameters()]  # seen from Python, so that it can be found
        known = gc.get_objects()  # by type, as `isinstance` follows weak references, also dead ones
        shaped = [t for t in known if issubclass(type(t), torch.Tensor) and t.shape == (41, 37)]
        found.append(len({t.untyped_storage().data_ptr() for t in shaped + now}))
        return {}
    for _ in range(2):
        optimizer.step(gradient)
    weights, grad, moments, copies = 1, 1, 2, 2
    assert found[-1] == weights + grad + moments + copies


def test_memory_rises_with_batch_and_iterations_and_falls_with_pieces():
    foot = footprint(config(precision='bfloat16'))
    for totals in ([foot.memory(n).total for n in (1, 2, 3, 10, 1000)],
                   [foot.memory(iterations=k).total for k in (1, 2, 16, 17)],
                   [foot.memory(accumulate=n).total for n in (48, 24, 6, 2)]):
        assert totals == sorted(set(totals))
    most = foot.largest_batch(2 * GIB)
    assert foot.memory(most, 1).total <= 2 * GIB < foot.memory(most + 1, 1).total


@pytest.mark.parametrize('share', [0.9, 0.5, 0.3, 0.1])
def test_the_accumulation_that_is_found_fits_and_a_smaller_one_does_not(share):
    c = config()
    foot = footprint(c)
    capacity = share * foot.memory().total + foot.memory(accumulate=48).total
    found = needed_accumulation(c, capacity)
    assert c.batch_size % found == 0
    assert check_memory(c.replace(accumulate=found), capacity).micro_batch == c.batch_size // found
    smaller = [n for n in range(1, found) if c.batch_size % n == 0]
    assert all(foot.memory(accumulate=n).total > capacity * (1 - RESERVE) for n in smaller)


def test_the_error_is_one_line_that_names_need_capacity_and_fixes_that_work():
    c = config()
    capacity = 0.5 * predict_memory(c).total
    with pytest.raises(UserError) as e: check_memory(c, capacity)
    text = str(e.value)
    assert '\n' not in text and '48 boards x 6 iterations' in text and f'{capacity / GIB:.4g} GiB' in text
    fixes = dict(part.split('=') for part in text.split('fix: ')[1].split(', or ') if '=' in part)
    assert set(fixes) == {'accumulate', 'iterations'} and 'checkpointed iterations' in text
    for name, value in fixes.items():
        check_memory(c.replace(**{name: value}), capacity)


def test_the_run_that_the_log_lost():
    lost = LoopedConfig(batch_size=8192, precision='bfloat16', recurrence='add', input_once=('puzzle',))
    with pytest.raises(UserError, match='fix: accumulate=2, or iterations='): check_memory(lost, 139.8 * GIB)
    assert check_memory(lost.replace(batch_size=4096), 139.8 * GIB).total < 139.8 * GIB
