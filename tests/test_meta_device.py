"""A training step of every kind of network at the sizes made for a GPU, on the device `meta`: shapes without numbers.

The step is the trainer's own, with SAM, accumulation, clipping, optimizer and averaged weights, on a batch of the true
size. Nothing is computed, so it takes neither a GPU nor memory; what it shows are tensors that stay on the CPU while
the rest has moved on, and shapes that do not fit. Three things are put in:

- Where a step asks for a number (is the loss finite? are the weights too large?) there is none on `meta`. The answer
  is 0, or True: all is finite, the longer branch is taken.
- Batches keep the two tensors that are read as numbers, `skip` and `loops`, on the CPU.
- There is no autocast for `meta`; its rule is followed by name: products in bfloat16, norms and losses in float32.
"""
from contextlib import nullcontext
from dataclasses import fields
from typing import Literal, get_args, get_origin, get_type_hints

import pytest, torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from blank import blank_task
from reasonnb.core.gradients import Batch, Ranks
from reasonnb.core.trainer import Run, train_step
from reasonnb.lab.catalogue import resolve
from reasonnb.systems.equilibrium.config import EquilibriumConfig
from reasonnb.systems.lattice.config import LatticeConfig
from reasonnb.systems.looped.config import LoopedConfig

LOOPED = '''baseline no_intermediate no_sudoku_pos sinusoidal_pos rope_2d pos_none pos_row_col pos_sinusoidal
    pos_relative pos_alibi proj_add proj_concat middle2 sam_bs512 recur_concat recur_gated recur_mem recur_add_nopred
    separate_h_pred norm_pred long_streams long_late mlp_mixer scale_up_accum trm_exact fixed_init carry ema_warmup
    cosine_pos_once cosine_relu2'''.split()
LATTICE = 'lattice lattice_attention lattice_named lattice_last_loop'.split()
EQUILIBRIUM = '''beta_0_22_fixed eq_ref_symmetric eq_no_layernorm eq_rule_vector_field eq_rule_asymmetric
    eq_rule_backprop eq_collapse equilibrium equilibrium_one_sided equilibrium_linear equilibrium_no_attention
    equilibrium_conv'''.split()
# parts that no experiment of the equilibrium has, put into one that can have them
EXTRA = [('equilibrium', dict(estimator='holomorphic')), ('equilibrium', dict(activation='softplus', readout='mean')),
         ('equilibrium', dict(activation='relu2', estimator='jacobian_free', solver='anderson')),
         ('beta_0_22_fixed', dict(norm='last'))]
SHORT = dict(LoopedConfig=dict(layers=1, compile=False), LatticeConfig=dict(layers=1, loops=2, compile=False),
             EquilibriumConfig=dict(iterations=2, nudged_iterations=2, tolerance=0., nudged_tolerance=0.,
                                    compile=False))


class OneDevice(TorchDispatchMode):
    "Inside, an operation on meta tensors that is also given one on the CPU fails, as it would on a GPU."
    copies = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        on_meta = [x.is_meta for x in tensors]
        if function is torch.ops.aten._local_scalar_dense.default and on_meta[0]: return tensors[0].dtype == torch.bool
        if any(on_meta) and function not in self.copies:
            strays = [tuple(x.shape) for x in tensors if not x.is_meta and x.dim()]  # a single number may be anywhere
            if strays: raise RuntimeError(f'{function} on meta is given a tensor on the CPU, of shape {strays[0]}')
        return function(*args, **kwargs)


class Autocast(TorchFunctionMode):
    "Products in bfloat16, norms, softmaxes and losses in float32."
    low = {F.linear, F.conv2d, F.conv_transpose2d, F.scaled_dot_product_attention, torch.matmul, torch.bmm,
           Tensor.matmul, Tensor.__matmul__}
    high = {F.layer_norm, F.rms_norm, F.softmax, torch.softmax, Tensor.softmax, F.cross_entropy,
            F.binary_cross_entropy_with_logits}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kind = torch.float32 if function in self.high else torch.bfloat16
        def cast(x): return x.to(kind) if isinstance(x, Tensor) and x.is_floating_point() else x
        if function in self.low | self.high:
            args, kwargs = map(cast, args), {name: cast(x) for name, x in (kwargs or {}).items()}
        return function(*args, **kwargs or {})


class OnMeta(Batch):
    "A batch that is where it should be: all on meta, but what is read as a number."
    def to(self, device):
        moved = {name: x if name in ('skip', 'loops') else x.to('meta') for name, x in self.tensors.items()}
        return OnMeta(moved, self.weights.to('meta'))


class MetaRun(Run):
    def autocast(self): return Autocast() if self.config.precision == 'bfloat16' else nullcontext()


@pytest.fixture(autouse=True)
def plain_adamw(monkeypatch):
    "The fused kernel has no meta form."
    adamw = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, 'AdamW', lambda groups, fused, **more: adamw(groups, **more))


def short(config): # the same network with fewer repetitions of the same layers
    changes = SHORT[type(config).__name__]
    if isinstance(config, LoopedConfig):
        stacks = min(config.untied_stacks, 2)
        changes = changes | dict(untied_stacks=stacks, iterations=2, outer=2, inner=2,
                                 accumulate=min(config.accumulate, 2))
        if config.late_share: changes = changes | dict(late_iterations=(2,))
    return config.replace(**changes)


def step(config, spoil=lambda task: None): # the run after one update; `spoil` may damage the task when it has moved
    task = blank_task(config)
    run = MetaRun(task, config, None, torch.device('meta'), Ranks())
    batch = task.batch(0)
    task.batch = lambda step: OnMeta(batch.tensors, batch.weights)
    run.model.train()
    spoil(task)
    with OneDevice(): terms = train_step(run)
    assert all(x.is_meta for x in terms.values())
    return run


def check(config):
    run = step(short(config))
    grads = [p.grad for p in run.params]
    assert any(g is not None for g in grads) and all(g is None or g.is_meta for g in grads)
    parts = getattr(run.optimizer, 'base', run.optimizer).parts
    kept = [x for part in parts for state in part.state.values() for x in state.values() if isinstance(x, Tensor)]
    assert kept and all(x.is_meta for x in kept if x.dim())  # a count of steps is a single number


@pytest.mark.parametrize('scale', ['h200', 'log'])
@pytest.mark.parametrize('slug', LOOPED + LATTICE + EQUILIBRIUM)
def test_a_step_stays_on_its_device(slug, scale): check(resolve(slug, scale))


@pytest.mark.parametrize('scale', ['h200', 'log'])
@pytest.mark.parametrize('slug, changes', EXTRA, ids=str)
def test_parts_that_no_experiment_has_stay_there_too(slug, changes, scale): check(resolve(slug, scale, **changes))


def choices(kind): # field -> the values that it may have
    hints = get_type_hints(kind)
    return {f.name: set(get_args(hints[f.name])) for f in fields(kind) if get_origin(hints[f.name]) is Literal}


@pytest.mark.parametrize('kind, slugs, names', [
    (LoopedConfig, LOOPED, 'network activation inputs position mixing recurrence start readout supervise optimizer '
                           'precision'),
    (LatticeConfig, LATTICE, 'network supervise'),
    (EquilibriumConfig, EQUILIBRIUM, 'network attention activation norm estimator solver nudge readout')])
def test_every_kind_of_part_is_among_them(kind, slugs, names):
    tried = [resolve(slug, scale) for slug in slugs for scale in ('h200', 'log')]
    if kind is EquilibriumConfig: tried += [resolve(slug, 'log', **changes) for slug, changes in EXTRA]
    for name in names.split():
        missing = choices(kind)[name] - {getattr(config, name) for config in tried}
        assert not missing, f'{name}: nothing tries {missing}'
    if kind is LoopedConfig:
        for name in ('sam_rho', 'ema', 'slots', 'late_share', 'input_once', 'clip'):
            assert any(getattr(config, name) for config in tried), name
        assert any(config.accumulate > 1 for config in tried) and any(config.untied_stacks > 1 for config in tried)


def forgotten_table(task): task.model.position.rows = task.model.position.rows.new_zeros(3, 81, device='cpu')
def forgotten_matrix(task): task.model.head.forward = lambda h: h @ torch.ones(128, 9)
def forgotten_bias(task): task.model.position.bias = lambda: torch.zeros(4, 81, 81)


@pytest.mark.parametrize('spoil', [forgotten_table, forgotten_matrix, forgotten_bias], ids=lambda f: f.__name__)
def test_a_tensor_left_on_the_cpu_is_found(spoil):
    with pytest.raises(RuntimeError, match='given a tensor on the CPU'): step(short(resolve('baseline', 'log')), spoil)


def test_a_new_tensor_on_the_cpu_is_found_on_the_way_back():
    "The forward pass is sound; the gradient of one operation is made on the CPU."
    class Careless(torch.autograd.Function):
        @staticmethod
        def forward(ctx, h): return h.clone()
        @staticmethod
        def backward(ctx, gradient): return gradient * torch.ones(gradient.shape)
    def spoil(task): task.model.recurrence.read = lambda x, s: Careless.apply(x)
    with pytest.raises(RuntimeError, match='given a tensor on the CPU'): step(short(resolve('baseline', 'log')), spoil)
