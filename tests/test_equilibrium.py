"Equilibria: energies against autograd, nine gradients against elimination, theory's power laws, and what is refused."
import gzip
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from reasonnb.core.config import UserError
from reasonnb.core.guards import TrainingError
from reasonnb.core.paths import data_folders, seek
from reasonnb.images import datasets as data
from reasonnb.images.datasets import MNIST, digits, load, mnist, read_idx, shifted, split, to_idx
from reasonnb.systems.equilibrium.energy import AttentionEnergy, EnergyTransformer, HopfieldEnergy
from reasonnb.systems.equilibrium.estimators import ESTIMATORS, Phases, Problem, agreement, estimate, gradient
from reasonnb.systems.equilibrium.lessons import (EXACTLY, Tilted, errors, exact_gradient, loglog_slope,
                                                  nudged_gradients, stepwise_updates, summands_through_time, tiny)
from reasonnb.systems.equilibrium.network import clip_norm_
from reasonnb.nn.activation_memory import peak_saved_bytes
from reasonnb.nn.fixed_points import Relaxation, asymmetry, check, relax, contraction_rate
from reasonnb.systems.equilibrium.vector_field import CrossBlock, SelfBlock

ENERGIES, BLOCKS = ('softmax', 'linear', 'none'), ('cross', 'cross_tokens', 'self')
EXACT = EXACTLY.replace(iterations=600, nudged_iterations=600)
needs_mnist = pytest.mark.skipif(seek(f'mnist/{next(iter(MNIST))}', data_folders()) is None, reason='MNIST is not here')
pytestmark = pytest.mark.usefixtures('one_thread')


def far_off(kind, name, phases, **changes):
    "Cosine and relative error of an estimator on a tiny network."
    case = tiny(kind, **changes)
    return agreement(gradient(*case, name, phases), exact_gradient(*case))


# energies -------------------------------------------------------------------------------------------------------------

@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.floats(.01, 5.), tokens=st.integers(1, 6),
       kind=st.sampled_from(['softmax', 'linear', 'logcosh', 'softplus', 'relu2']))
def test_written_field_is_minus_the_gradient(seed, size, tokens, kind):
    torch.manual_seed(seed)
    if kind in ('softmax', 'linear'): part = AttentionEnergy(6, 2, 3, kind=kind, scale=1.).double()
    else: part = HopfieldEnergy(6, 9, kind, scale=1.).double()
    g = (torch.randn(2, tokens, 6).double() * size).requires_grad_()
    slope, = torch.autograd.grad(part.energy(g).sum(), g)
    torch.testing.assert_close(part.field(g), -slope, rtol=1e-10, atol=1e-10)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), kind=st.sampled_from(ENERGIES))
def test_energy_falls_and_its_force_is_a_gradient(seed, kind):
    model, images, _ = tiny(kind, seed)
    u = model.drive(images).detach()
    h, last = model.start(u), None
    with torch.no_grad():
        for _ in range(40):
            now = model.energy(h, u)
            assert last is None or (now <= last + 1e-11).all()
            h, last = torch.lerp(h, model.field(h, u), .1), now
    assert asymmetry(model.field, h, (u,), transform=model.activate).max() < 1e-9


def test_written_field_is_the_same_in_single_precision():
    torch.manual_seed(0)
    model = EnergyTransformer(hidden=64)
    u = model.drive(torch.rand(16, 1, 8, 8)).detach()
    h = torch.randn_like(u).requires_grad_()
    g = model.activate(h)
    parts = sum(part.energy(g).sum() for part in model.parts)
    torch.testing.assert_close(model.field(h, u), u - torch.autograd.grad(parts, g)[0], rtol=1e-5, atol=1e-5)


# gradients ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('kind', ENERGIES + BLOCKS)
def test_exact_estimators_agree_with_elimination(kind):
    for name, phases in (('implicit', EXACT), ('bptt', EXACT.replace(iterations=300)),
                         ('asymmetric', EXACT.replace(beta=.003))):
        cosine, error = far_off(kind, name, phases, count=4)
        assert cosine > 1 - 1e-8 and error < (1e-4 if name == 'asymmetric' else 1e-8), (name, error)


@pytest.mark.parametrize('kind', ENERGIES)
def test_equilibrium_propagation_is_the_gradient(kind):
    for name, bound in (('ep_one_sided', .05), ('ep_symmetric', 1e-3), ('vector_field', 1e-3), ('holomorphic', 1e-6)):
        cosine, error = far_off(kind, name, EXACT.replace(beta=.05), count=4)
        assert error < bound and cosine > 1 - bound, (name, error)


def test_error_falls_with_powers_one_two_and_four():
    case, betas = tiny(count=4), [.01, .02, .04]
    exact = exact_gradient(*case)
    rows = nudged_gradients(*case, betas, EXACT)
    assert loglog_slope(betas, errors(rows['ep_one_sided'], exact)) == pytest.approx(1, abs=.1)
    assert loglog_slope(betas, errors(rows['ep_symmetric'], exact)) == pytest.approx(2, abs=.1)
    betas = [.1, .2]
    circle = [agreement(gradient(*case, 'holomorphic', EXACT.replace(beta=b)), exact)[1] for b in betas]
    assert loglog_slope(betas, circle) == pytest.approx(4, abs=.3)


def test_best_strength_follows_the_tolerance():
    case, betas, tolerances = tiny(count=4), np.logspace(-4, .2, 18).tolist(), [1e-3, 1e-4, 1e-5, 1e-6, 1e-7]
    exact, best = exact_gradient(*case), dict(ep_one_sided=[], ep_symmetric=[])
    for t in tolerances:
        rows = nudged_gradients(*case, betas, EXACT.replace(tolerance=t, nudged_tolerance=t, nudged_iterations=150))
        for name in best:
            best[name].append(betas[int(errors(rows[name], exact).argmin())])
    assert loglog_slope(tolerances, best['ep_one_sided']) == pytest.approx(1 / 2, abs=.12)
    assert loglog_slope(tolerances, best['ep_symmetric']) == pytest.approx(1 / 3, abs=.1)


@pytest.mark.parametrize('kind', ENERGIES)
def test_each_nudged_step_is_a_summand_of_backpropagation(kind):
    case = tiny(kind, count=4)
    wanted, found = summands_through_time(*case, 8, EXACT), stepwise_updates(*case, 8, EXACT.replace(beta=3e-4))
    assert ((found - wanted).norm(dim=1) < 1e-5 * wanted.norm(dim=1)).all()


def test_asymmetry_biases_the_vector_field_rule_and_not_the_asymmetric_one():
    def measured(tilt): # asymmetry, error of the vector field rule, error of the asymmetric rule
        torch.manual_seed(0)
        settings = dict(image=(1, 4, 4), patch=2, stride=2, width=8, heads=2, size=4, hidden=12, classes=3)
        model = Tilted(tilt, **settings).double()
        case = model, torch.rand(4, 1, 4, 4).double(), torch.tensor([0, 1, 2, 0])
        p, exact = Problem(*case, EXACT), exact_gradient(*case)
        def error(name): return agreement(gradient(*case, name, EXACT.replace(beta=.003)), exact)[1]
        turned = asymmetry(model.field, p.free.state, (p.u.detach(),), transform=model.activate)
        return float(turned.mean()), error('vector_field'), error('asymmetric')
    turned, vector_field, asymmetric = zip(*(measured(tilt) for tilt in (0., .05, .2)))
    assert turned[0] < 1e-9 and max(asymmetric) < 1e-4
    assert vector_field[0] < 1e-4
    assert vector_field[2] / vector_field[1] == pytest.approx(turned[2] / turned[1], rel=.15)


# batches --------------------------------------------------------------------------------------------------------------

def test_batch_is_the_mean_of_its_images():
    for kind, name in (('softmax', 'ep_symmetric'), ('self', 'asymmetric'), ('cross', 'vector_field'),
                       ('linear', 'holomorphic')):
        model, images, labels = tiny(kind, count=3)
        def of(rows): return gradient(model, images[rows], labels[rows], name, phases=EXACT)
        one = torch.stack([of(slice(i, i + 1)) for i in range(3)]).mean(0)
        assert agreement(one, of(slice(None)))[1] < 1e-8, name


def test_only_the_batch_mean_depends_on_the_batch():
    model, images, labels = tiny(count=4)
    exact = exact_gradient(model, images, labels)
    def error(nudge, times):
        loose = EXACT.replace(beta=.1, tolerance=1e-4, nudged_tolerance=1e-4, nudge=nudge)
        many = images.repeat(times, 1, 1, 1), labels.repeat(times)
        return agreement(gradient(model, *many, 'ep_symmetric', loose), exact)[1]
    assert error('sample', 32) == pytest.approx(error('sample', 1), rel=1e-6)
    assert error('batch_mean', 32) > 5 * error('sample', 32)


def test_frozen_images_do_not_depend_on_their_batch():
    model, images, _ = tiny('softmax', count=6)
    u = model.drive(images).detach()
    def relaxed(u, solver):
        return relax(model.field, model.start(u), (u,), iterations=200, tolerance=1e-9, solver=solver)
    for solver in ('damped', 'anderson'):
        together, alone = relaxed(u, solver), [relaxed(u[i:i + 1], solver) for i in range(6)]
        assert together.converged.all() and together.iterations.tolist() == [int(a.iterations) for a in alone]
        torch.testing.assert_close(together.state, torch.cat([a.state for a in alone]), rtol=1e-9, atol=1e-9)


def test_memory_does_not_grow_with_iterations():
    model, images, labels = tiny()
    def kept(name, n):
        phases = Phases(iterations=n, nudged_iterations=n, tolerance=0.)
        return peak_saved_bytes(lambda: estimate(model, images, labels, name, phases=phases))
    for name in ESTIMATORS:
        if name == 'bptt': assert kept(name, 40) > 6 * kept(name, 5)
        else: assert kept(name, 40) == kept(name, 5), name


# what goes wrong ------------------------------------------------------------------------------------------------------

def test_bad_settings_get_one_clear_error_each():
    case = tiny(count=2)
    too_weak = Phases(iterations=6, beta=.01, tolerance=0., on_untrusted='raise')
    too_short = Phases(iterations=1, on_untrusted='raise')
    for wrong, message in (
        (lambda: Phases(beta=0.), 'beta=0.0: without a nudge'),
        (lambda: Phases(beta=-1.), 'beta=-1.0'),
        (lambda: Phases(points=1), 'points=1'),
        (lambda: estimate(*case, 'ep_symetric'), "did you mean 'ep_symmetric'"),
        (lambda: estimate(*tiny('self', count=2), 'ep_symmetric'), 'needs an energy, and SelfBlock has none'),
        (lambda: estimate(*tiny(activation='relu2', count=2), 'holomorphic'), 'without kinks'),
        (lambda: estimate(*case, 'ep_one_sided', too_weak), 'is no gradient'),
        (lambda: estimate(*case, 'implicit', too_short), 'is not a fixed point'),
        (lambda: tiny('transformer'), 'unknown kind of network'),
        (lambda: CrossBlock(tied=True, attention='softmax'), 'tied=True'),
    ):
        with pytest.raises(UserError, match=message.replace('?', r'\?')): wrong()
    assert all(p.grad is None for p in case[0].parameters())


def test_not_a_number_and_expanding_maps_stop_with_a_reason():
    model, images, labels = tiny(count=3)
    broken = images.clone()
    broken[1] = float('nan')
    with pytest.raises(TrainingError, match='1 of 3 images is not finite'): estimate(model, broken, labels)
    with torch.no_grad(): model.readout.weight.fill_(float('nan'))
    with pytest.raises(TrainingError, match='not finite'): estimate(model, images, labels)
    start = torch.ones(2, 1).double()
    wild = relax(lambda h: -3 * h + 1, start, iterations=60, tolerance=1e-6)
    with pytest.raises(TrainingError, match='does not contract for 2 of 2'): check(wild)
    assert contraction_rate(lambda h: -3 * h + 1, start, damping=1.).tolist() == pytest.approx([3, 3])


@pytest.mark.parametrize('residuals, said', [
    ([1., 1., .5, .3, .1, .1, .1, .1], 'does not contract'),  # it fell, and falls no longer
    ([1., 1., 1., 1., 1., 1., .5, .1], 'on their way'),
])
def test_what_moves_no_longer_is_told_from_what_is_on_its_way(residuals, said):
    trace, one = torch.tensor(residuals)[:, None], torch.ones(1)
    found = Relaxation(one, trace[-1], trace[-1], iterations=one * 8, converged=one < 0, trace=trace)
    with pytest.raises(TrainingError, match=said): check(found)


def test_clipping_makes_a_map_contract_and_is_idempotent():
    torch.manual_seed(0)
    model = SelfBlock(width=16, heads=2, hidden=32, clip=.8).double()
    with torch.no_grad():
        for w, _ in model.clipped():
            w.mul_(5)
    model.project()
    before = [w.clone() for w, _ in model.clipped()]
    model.project()
    assert all(torch.equal(w, b) for (w, _), b in zip(model.clipped(), before))
    assert all(float(torch.linalg.matrix_norm(w.detach(), 2)) <= .8 * share + 1e-6 for w, share in model.clipped())
    with pytest.raises(UserError, match='not finite'): clip_norm_(torch.full((2, 2), float('nan')), 1.)


def test_dropout_leaves_no_fixed_point():
    torch.manual_seed(0)
    settings = dict(patch=4, stride=1, width=8, heads=2, hidden=12, dropout=.1, classes=3, clip=.6)
    model = CrossBlock((1, 4, 4), **settings).double()
    u = model.drive(torch.rand(4, 1, 4, 4).double()).detach()
    def converged(iterations):
        return relax(model.field, model.start(u), (u,), iterations=iterations, tolerance=1e-4).converged
    assert not converged(150).any()
    model.eval()
    assert converged(600).all()


# data -----------------------------------------------------------------------------------------------------------------

def test_parts_share_no_image():
    data = digits()
    rows = torch.cat([part.images for part in (data.train, data.validation, data.test)]).flatten(1)
    assert len(rows.unique(dim=0)) == len(rows) == 1797


def test_few_training_images_are_a_sample_with_their_labels():
    labels = np.repeat(np.arange(10, dtype=np.uint8), 10)
    images = np.broadcast_to(20 * labels[:, None, None], (100, 2, 2))
    parts = split((images, labels), (images, labels), 'toy', validation=10, limit=30)
    assert (len(parts.train), len(parts.validation)) == (30, 10) and len(parts.train.labels.unique()) > 5
    grey = torch.stack([parts.test.images[parts.test.labels == label][0] for label in range(10)])
    for part in (parts.train, parts.validation, parts.test):
        assert torch.equal(part.images, grey[part.labels])


@settings(max_examples=40, deadline=None)
@given(content=st.binary(max_size=60), pack=st.booleans())
def test_any_other_file_is_refused_in_one_sentence(tmp_path_factory, content, pack):
    path = tmp_path_factory.mktemp('idx') / 'file'
    path.write_bytes(gzip.compress(content) if pack else content)
    try: array, _ = read_idx(path)
    except UserError as e: assert str(path) in str(e) and '\n' not in str(e)
    else: assert array.size + 4 + 4 * array.ndim == len(content)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    "A hub that gives what it is told to, and an empty folder for data."
    columns = {}
    monkeypatch.setitem(sys.modules, 'datasets', SimpleNamespace(load_dataset=lambda name, split: columns[split]))
    monkeypatch.setattr(data, 'data_folders', lambda: [tmp_path])
    return columns


@needs_mnist
def test_mnist_from_the_hub_is_mnist(hub, tmp_path):
    here = {name: read_idx(seek(f'mnist/{name}', data_folders()))[0] for name in MNIST}
    for part, name in (('train', 'train'), ('test', 't10k')):
        images, labels = here[f'{name}-images-idx3-ubyte'], here[f'{name}-labels-idx1-ubyte']
        hub[part] = dict(image=list(images), label=labels.tolist())
    assert len(load('mnist').train) == 55_000
    assert {name: read_idx(tmp_path / 'mnist' / name)[1] for name in MNIST} == MNIST


def test_other_images_from_the_hub_are_refused(hub):
    hub.update({part: dict(image=[np.zeros((28, 28))] * 3, label=[1, 2, 3]) for part in ('train', 'test')})
    with pytest.raises(UserError, match="is not MNIST's train-images"): load('mnist')


def test_a_hub_out_of_reach_is_named(hub):
    with pytest.raises(UserError, match="MNIST is missing .* the download failed"): load('mnist')


def test_other_contents_under_the_names_of_mnist_are_refused(tmp_path, monkeypatch):
    folder = tmp_path / 'mnist'
    folder.mkdir()
    for name in MNIST:
        shape = (4, 2, 2) if 'images' in name else (4,)
        array = np.arange(np.prod(shape)).reshape(shape)
        (folder / f'{name}.gz').write_bytes(gzip.compress(to_idx(array)))
    monkeypatch.setenv('REASONNB_DATA', str(tmp_path))
    with pytest.raises(UserError, match="is not MNIST's train-images"): load('mnist')
    assert len(mnist(folder, validation=1).train) == 3  # asked for by path, it is taken as it is
    assert os.environ['REASONNB_DATA']


def test_shifts_keep_the_strokes():
    images = torch.zeros(50, 1, 6, 6)
    images[:, :, 2:4, 2:4] = torch.rand(50, 1, 2, 2)
    moved = shifted(images, 2, 0., torch.Generator().manual_seed(0))
    torch.testing.assert_close(moved.sum((1, 2, 3)), images.sum((1, 2, 3)))
    assert not torch.equal(moved, images)
