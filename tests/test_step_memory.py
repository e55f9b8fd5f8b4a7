"""Predicted memory of a training step of every system: against the allocator, known bytes, and the size of a GPU."""
import json
from functools import cache

import pytest, torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

from blank import blank_task
from reasonnb.core.gradients import Ranks
from reasonnb.core.trainer import Run, train_step
from reasonnb.lab.catalogue import resolve
from reasonnb.lab import readcommands
from reasonnb.lab.readcommands import H200, list_, predicted_memory, show
from reasonnb.lab.terminal import program
from reasonnb.nn.step_memory import step_memory
from reasonnb.systems.looped.config import LoopedConfig
from reasonnb.systems.looped.memory import predict_memory

SMALL = dict(box=(2, 3), d_model=32, layers=2, heads=2, d_ff=64, batch_size=48, iterations=6, steps=2)


class NoArithmetic(TorchDispatchMode):
    "Inside, products are zeros: networks made for a GPU take long on a CPU, and memory is a matter of shapes."
    products = {torch.ops.aten.mm.default: (0, 1), torch.ops.aten.bmm.default: (0, 1),
                torch.ops.aten.addmm.default: (1, 2)}  # which arguments are multiplied

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function not in self.products: return function(*args, **(kwargs or {}))
        left, right = (args[place] for place in self.products[function])
        return left.new_zeros(*left.shape[:-1], right.shape[-1])


@cache
def predicted(config): # bytes
    "The prediction, made once for all tests."
    with NoArithmetic(): return predicted_memory(config)


def allocated(config, path):
    "Bytes at the peak of two updates, as the profiler saw them."
    def two_updates():
        run = Run(blank_task(config), config, None, torch.device('cpu'), Ranks())
        run.model.train()
        for _ in range(2):
            train_step(run)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen: two_updates()
    seen.export_chrome_trace(str(path))
    events = [e for e in json.loads(path.read_text())['traceEvents'] if e.get('name') == '[memory]']
    now = most = 0
    for e in sorted(events, key=lambda e: e['ts']):
        now += e['args']['Bytes']
        most = max(most, now)
    return most


@pytest.mark.parametrize('slug', ['lattice', 'eq_rule_backprop', 'eq_rule_implicit', 'eq_rule_asymmetric',
                                  'equilibrium', 'eq_collapse'])
def test_what_is_predicted_is_what_is_allocated(slug, tmp_path):
    config = resolve(slug, 'smoke', batch_size=24, steps=2, warmup=0, schedule='constant')
    found = step_memory(blank_task, config, sizes=(12, 16))
    assert found.total == pytest.approx(allocated(config, tmp_path / 'trace.json'), rel=0.02)


@pytest.mark.parametrize('changes', [
    dict(), dict(sam_rho=.1), dict(accumulate=4), dict(precision='bfloat16'), dict(optimizer='muon', muon_rate=.02),
    dict(network='nested', outer=1, inner=3)], ids=str)
def test_the_looped_system_predicts_the_same_by_other_means(changes):
    config = LoopedConfig(**SMALL | changes)
    ours, theirs = step_memory(blank_task, config), predict_memory(config)
    assert ours.total == pytest.approx(theirs.total, rel=0.04)
    assert (ours.micro_batch, ours.optimizer) == (theirs.micro_batch, theirs.optimizer)


def linear(inputs, outputs): return inputs * outputs + outputs


def test_parameters_are_known_by_hand():
    "The log's block: 256 wide, four projections, MLP of 1,024, three norms, patches with a position, ten classes."
    width, hidden, pixels = 256, 1024, 784
    block = 4 * linear(width, width) + linear(width, hidden) + linear(hidden, width) + 3 * 2 * width
    numbers = block + width * pixels + width + linear(width, 10)
    found = step_memory(blank_task, resolve('beta_0_22_fixed', 'log'), sizes=(16, 24))
    assert (found.parameters, found.micro_batch) == (4 * numbers, 128)
    tensors = 2 * (4 + 2 + 3 + 1) + 2  # AdamW keeps two numbers for each parameter, and a count for each tensor
    assert found.optimizer == 2 * found.parameters + 4 * tensors + 4  # and the task counts untrusted gradients


def test_a_graph_through_time_is_what_the_log_could_not_see():
    "Backpropagation through fifty iterations beside the log's rule, at the sizes of the authors' own measurement."
    rule, through_time = (predicted(resolve(slug, 'log')) for slug in ('eq_gap3_memory', 'eq_ref_backprop'))
    assert through_time > 4 * rule


@pytest.mark.parametrize('slug, scale', [('baseline', 'h200'), ('cosine', 'log'), ('trm_nested', 'log'),
                                         ('lattice', 'h200'), ('lattice_attention', 'log'),
                                         ('beta_0_22_fixed', 'log'), ('equilibrium_mnist', 'h200')])
def test_steps_for_a_gpu_fit_into_it(slug, scale):
    assert 0 < predicted(resolve(slug, scale)) < H200


def test_show_says_what_does_not_fit(monkeypatch):
    monkeypatch.setattr(readcommands, 'predicted_memory', predicted)
    cli = program([list_, show])
    said = CliRunner().invoke(cli, ['show', 'bs8192_oom', '--scale', 'log']).stdout
    line, = (line for line in said.splitlines() if line.startswith('memory:'))
    assert line.startswith('memory:   217 GiB for a training step (predicted), which is more than ')
    fits = json.loads(CliRunner().invoke(cli, ['show', 'lattice', '--scale', 'h200', '--json']).stdout)
    assert fits['memory'] == predicted(resolve('lattice', 'h200'))
    assert 'memory:' not in CliRunner().invoke(cli, ['show', 'lattice', '--scale', 'laptop']).stdout
