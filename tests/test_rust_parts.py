"Parts of the language model: memories, streams, heads, ternary layers, its optimizer, and runs that are prolonged."
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn

from reasonnb.core.config import Config, UserError
from reasonnb.core.extending import extend, stable_checkpoint
from reasonnb.core.optimizers import Optimizers
from reasonnb.core.records import RunFolder
from reasonnb.core.schedules import decay_begins, lr_at
from reasonnb.core.trainer import fit
from reasonnb.systems.rust_lm.config import RustConfig
from reasonnb.systems.rust_lm.heads import FutureHeads, exit_distribution, exit_loop, exit_loss, mtp_losses
from reasonnb.systems.rust_lm.ngram_memory import BigramTable, Engram, is_prime, multipliers, ngram_rows
from reasonnb.systems.rust_lm.optimizing import Lion, Muon, assignment, make_rust_optimizer, packed, parameter_kinds
from reasonnb.systems.rust_lm.streams import HyperConnections, collapse, expand
from reasonnb.systems.rust_lm.ternary import TernaryLinear, eight_bits, rounded, ternary
from toy_task import ToyConfig, ToyTask

pytestmark = pytest.mark.usefixtures('one_thread')
few = settings(max_examples=30, deadline=None)


# memories

@few
@given(st.sampled_from([31, 97, 251]), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_as_many_tables_as_tokens_tell_ngrams_apart(rows, order, seed):
    rng = torch.Generator().manual_seed(seed)
    primes = torch.tensor(multipliers(rows, order))
    a, b = torch.randint(rows, (2, 2_000, order), generator=rng)
    same = (ngram_rows(a, order, primes, rows)[:, -1] == ngram_rows(b, order, primes, rows)[:, -1]).all(-1)
    assert torch.equal(same, (a == b).all(-1))


@few
@given(st.integers(2, 4), st.lists(st.integers(0, 65_535), min_size=1, max_size=9))
def test_rows_are_the_polynomial_in_whole_numbers(order, tokens):
    "No overflow, whatever the token: the largest vocabulary and the log's tables."
    rows, primes = 10_007, multipliers(10_007, 3)
    found = ngram_rows(torch.tensor([tokens]), order, torch.tensor(primes), rows)
    padded = [0] * (order - 1) + tokens
    for t in range(len(tokens)):
        gram = padded[t:t + order]
        for k, p in enumerate(primes):
            assert found[0, t, k] == sum(x * p ** (order - 1 - i) for i, x in enumerate(gram)) % rows


def test_multipliers_are_different_primes():
    for rows in (31, 10_007, 20_480):
        found = multipliers(rows, 8)
        assert len(set(found)) == 8 and all(map(is_prime, found)) and max(found) < rows
    assert [n for n in range(20) if is_prime(n)] == [2, 3, 5, 7, 11, 13, 17, 19]


@pytest.mark.parametrize('orders', [(2, 3), (1, 4), (3,)])
@pytest.mark.parametrize('published', [False, True])
def test_decoding_goes_on_from_any_state(orders, published):
    torch.manual_seed(0)
    memory = Engram(12, orders=orders, heads=2, rows=31, width=4, published=published).double()
    nn.init.normal_(memory.conv.weight)
    ids, hidden = torch.randint(0, 200, (3, 20)), torch.randn(3, 20, 12).double()
    whole, state = memory(hidden, ids), memory.start(3)
    for t in range(20):
        one, state = memory.step(hidden[:, t], ids[:, t], state)
        torch.testing.assert_close(one, whole[:, t], rtol=0, atol=1e-12)
        assert sum(part.numel() for part in state) == sum(part.numel() for part in memory.start(3))


def test_no_gradient_from_later_hidden_states():
    torch.manual_seed(0)
    memory = Engram(8, rows=31, width=4, published=True).double()
    nn.init.normal_(memory.conv.weight)
    hidden = torch.randn(1, 9, 8, dtype=torch.float64, requires_grad=True)
    memory(hidden, torch.randint(0, 50, (1, 9)))[:, 4].sum().backward()
    read = hidden.grad.any(-1)[0].nonzero().flatten().tolist()
    assert read == [1, 4]  # every third position
    assert not memory.table.weight.grad.isnan().any()


def test_a_text_does_not_depend_on_its_batch():
    torch.manual_seed(0)
    for memory in (Engram(8, rows=31, width=4).double(), BigramTable(50, 8).double()):
        ids, hidden = torch.randint(0, 40, (4, 6)), torch.randn(4, 6, 8).double()
        def of(h, i, m=memory): return m(h, i) if isinstance(m, Engram) else m(i)
        torch.testing.assert_close(of(hidden, ids)[2:3], of(hidden[2:3], ids[2:3]), rtol=0, atol=1e-12)


def test_memory_takes_any_linear_layer():
    memory = Engram(16, rows=31, width=4, linear=TernaryLinear)
    assert isinstance(memory.key, TernaryLinear) and isinstance(memory.value, TernaryLinear)
    memory(torch.randn(2, 5, 16), torch.randint(0, 9, (2, 5))).sum().backward()
    assert memory.key.weight.grad.any() and memory.table.weight.grad.any()


# streams

@few
@given(st.integers(1, 4), st.floats(-5, 5), st.integers(0, 2**31))
def test_mixing_keeps_the_mean(n, logit, seed):
    torch.manual_seed(seed)
    connections, streams = HyperConnections(n).double(), torch.randn(n, 2, 3, 4).double()
    with torch.no_grad(): connections.mix.fill_(logit)
    update = torch.randn(2, 3, 4).double()
    added = 2 * torch.sigmoid(torch.tensor(.5).double()) * update
    a, mean = torch.sigmoid(connections.mix.clamp(-3, 3)), collapse(streams) + added
    by_hand = a * streams + (1 - a) * streams[[k - 1 for k in range(n)]] + added
    torch.testing.assert_close(connections.write(streams, update), by_hand, rtol=0, atol=1e-12)
    torch.testing.assert_close(collapse(connections.write(streams, update)), mean, rtol=0, atol=1e-12)


@pytest.mark.parametrize('kind', [torch.optim.Adam, Lion])
def test_equal_streams_stay_equal_to_the_bit(kind):
    torch.manual_seed(0)
    layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
    joins = nn.ModuleList(HyperConnections(2, layer=k) for k in range(3))
    optimizer = kind([*layers.parameters(), *joins.parameters()], lr=1e-2)
    for _ in range(40):
        x = torch.randn(4, 7, 16)
        streams = expand(x, 2)
        for layer, join in zip(layers, joins):
            streams = join.write(streams, torch.tanh(layer(join.read(streams))))
        assert torch.equal(streams[0], streams[1])
        optimizer.zero_grad()
        (collapse(streams) - x.roll(1, -1)).square().mean().backward()
        assert all(join.mix.grad == 0 for join in joins)
        optimizer.step()
    assert all(join.pre[0] == join.pre[1] != 0 for join in joins)


def test_wrong_streams_are_refused():
    with pytest.raises(UserError, match='at least one'): HyperConnections(0)
    with pytest.raises(UserError, match="'equal' or 'distinct'"): HyperConnections(2, 'same')


# heads

def test_further_tokens_against_a_loop():
    torch.manual_seed(0)
    heads, hidden = FutureHeads(6, 11, 3).double(), torch.randn(2, 9, 6).double()
    targets = torch.randint(0, 11, (2, 9))
    targets[0, 5:7] = -100
    for k, loss in enumerate(mtp_losses(heads, hidden, targets)):
        terms = [F.cross_entropy(heads.heads[k](hidden[b, t]), targets[b, t + k + 1]) for b in range(2)
                 for t in range(9 - k - 1) if targets[b, t + k + 1] >= 0]
        torch.testing.assert_close(loss, torch.stack(terms).mean().float(), rtol=0, atol=1e-6, check_dtype=False)


@few
@given(st.integers(1, 6), st.integers(0, 2**31))
def test_exits_are_a_distribution(loops, seed):
    torch.manual_seed(seed)
    logits = 30 * torch.randn(loops, 5)
    log_exit = exit_distribution(logits)
    leave, stay, by_hand = torch.sigmoid(logits.double()), torch.ones(5).double(), []
    for i in range(loops):
        by_hand.append(stay if i == loops - 1 else stay * leave[i])
        stay = stay * (1 - leave[i])
    torch.testing.assert_close(log_exit.exp().double(), torch.stack(by_hand), rtol=1e-4, atol=1e-6)
    assert ((exit_loop(log_exit) >= 1) & (exit_loop(log_exit) <= loops)).all()


def test_tokens_that_do_not_count_do_not_count():
    torch.manual_seed(0)
    losses, logits = torch.rand(3, 2, 6), torch.randn(3, 2, 6)
    counts = torch.arange(6) < 4
    part = exit_loss(losses[..., :4], exit_distribution(logits[..., :4]), .1)
    all_of_it = exit_loss(losses, exit_distribution(logits), .1, counts.expand(2, 6))
    for a, b in zip(part, all_of_it): torch.testing.assert_close(a, b)


# ternary

@few
@given(st.integers(1, 300), st.integers(1, 5), st.sampled_from([1, 7, 128]), st.integers(0, 2**31))
def test_rounding_by_groups(n_in, n_out, group, seed):
    torch.manual_seed(seed)
    weight = torch.randn(n_out, n_in).double()
    signs, scales = ternary(weight, group)
    for first in range(0, n_in, group):
        part = weight[:, first:first + group]
        scale = part.abs().mean(1, keepdim=True)
        torch.testing.assert_close(scales[:, first // group, None], scale, rtol=0, atol=1e-12)
        assert torch.equal(signs[:, first:first + group], (part / scale).round().clamp(-1, 1))
    assert torch.equal(ternary(torch.zeros(2, 5))[0], torch.zeros(2, 5))
    assert (rounded(weight, group).abs() <= weight.abs().amax() + 1e-12).all()


def test_activations_have_255_values():
    x = 5 * torch.randn(3, 4_000)
    steps = eight_bits(x) * 127 / x.abs().amax(-1, keepdim=True)
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)
    assert ((eight_bits(x) - x).abs() <= x.abs().amax(-1, keepdim=True) / 254 + 1e-6).all()


# optimizer

class Tied(nn.Module):
    "An embedding that is the head, too, a memory and a matrix."
    def __init__(self):
        super().__init__()
        self.head, self.embedding = nn.Linear(8, 20, bias=False), nn.Embedding(20, 8)
        self.embedding.weight = self.head.weight
        self.up, self.engram = nn.Linear(8, 8), Engram(8, rows=31, width=2)


def config(**changes):
    return RustConfig(d_model=16, layers=2, heads=2, kv_heads=1, steps=100, warmup=0, decay=20, **changes)


def test_a_tied_embedding_is_no_matrix():
    kinds = parameter_kinds(Tied())
    assert kinds['head.weight'] == 'embedding' and 'embedding.weight' not in kinds
    assert kinds['up.weight'] == 'matrix' and kinds['engram.conv.weight'] == 'other'


@pytest.mark.parametrize('muon', [True, False])
@pytest.mark.parametrize('optimizer', ['muon', 'adamw'])
@pytest.mark.parametrize('rest', ['lion', 'adamw'])
def test_each_parameter_has_one_optimizer(muon, optimizer, rest):
    model = Tied()
    c = config(engram_muon=muon, optimizer=optimizer, rest=rest, engram_rate=3., weight_decay=.1)
    table = assignment(model, c).set_index('parameter')
    assert sorted(table.index) == sorted(dict(model.named_parameters()))
    memory = table.loc['engram.table.weight']
    with_matrices = muon and optimizer == 'muon'
    assert math.isclose(memory['peak rate'], c.lr if with_matrices else 3 * c.rest_lr)
    assert set(table[table['weight decay'] > 0].kind) == {'matrix'}


def give_gradients(model, seed):
    rng = torch.Generator().manual_seed(seed)
    for p in model.parameters(): p.grad = torch.randn(p.shape, generator=rng)


@pytest.mark.parametrize('int8', [False, True])
def test_an_optimizer_goes_on_from_its_state(int8):
    "Through a file, as a checkpoint is; 8-bit codes are still bytes and the next update is the same."
    c, models = config(int8_momentum=int8), []
    for restarts in (False, True):
        torch.manual_seed(0)
        model = Tied()
        optimizer = make_rust_optimizer(model, c)
        for step in range(6):
            if restarts and step == 3:
                state = optimizer.state_dict()
                optimizer = make_rust_optimizer(model, c)
                optimizer.load_state_dict(state)
                codes = [s['codes'].dtype for part in optimizer.parts for s in part.state.values() if 'codes' in s]
                assert codes == [torch.int8] * 4 * int8
            give_gradients(model, step)
            optimizer.apply()
        models.append(model)
    for a, b in zip(*(m.parameters() for m in models)): assert torch.equal(a, b)


def test_the_momentum_holds_on_to_no_graph():
    w = nn.Parameter(torch.randn(16, 16))
    muon = Muon([w], eight_bits=True, lr=.1)
    for _ in range(3):
        muon.zero_grad()
        w.grad, = torch.autograd.grad(w.square().sum(), w, create_graph=True)
        muon.step()
        assert all(t.grad_fn is None for t in muon.state[w].values())


@few
@given(st.integers(1, 700), st.floats(-20, 20), st.integers(0, 2**31))
def test_packing_is_within_half_a_step(n, size, seed):
    x = math.exp(size) * torch.randn(n, generator=torch.Generator().manual_seed(seed))
    codes, scales = packed(x)
    error = ((codes * scales).flatten()[:n] - x).abs()
    assert (error <= .501 * scales.repeat_interleave(128, 0).flatten()[:n]).all()
    assert codes.abs().max() <= 127


# schedule and prolonged runs

RATES = {'wsd': dict(schedule='wsd', warmup=10, decay=30), 'sqrt': dict(schedule='wsd', decay=30, decay_shape='sqrt')}


@pytest.mark.parametrize('kind', RATES)
@pytest.mark.parametrize('restart', [{}, dict(restart_ramp=8), dict(restart_peak=.25, restart_decay=20)])
def test_a_restart_is_two_schedules(kind, restart):
    first = Config(steps=100, lr=.3, lr_floor=.1, **RATES[kind])
    both = first.replace(steps=160, restart=100, **restart)
    assert [lr_at(s, both) for s in range(100)] == [lr_at(s, first) for s in range(100)]
    ramp, peak, decay = both.restart_ramp, .3 * both.restart_peak, both.restart_decay or 30
    second = Config(steps=60, lr=peak, lr_floor=.1, **RATES[kind] | dict(warmup=0, decay=decay))
    assert [lr_at(s, both) for s in range(100 + ramp, 160)] == [lr_at(s, second) for s in range(ramp, 60)]
    steps = [lr_at(s + 1, both) - lr_at(s, both) for s in range(99, 99 + ramp)]
    assert all(math.isclose(step, .27 / ramp, rel_tol=1e-9) for step in steps)
    assert decay_begins(both) == 160 - decay


class Own(ToyTask):
    "Has an optimizer of its own."
    def make_optimizer(self, config):
        return Optimizers(torch.optim.SGD(self.model.parameters(), lr=config.lr, momentum=.9))


STATES = {'dropout and batch norm': (ToyTask, {}),
          'average and SAM': (ToyTask, dict(ema=.9, sam_rho=.05, accumulate=2)),
          'Muon': (ToyTask, dict(optimizer='muon')), 'an optimizer of its own': (Own, {})}


def toy(**changes):
    return ToyConfig(steps=60, schedule='wsd', warmup=5, decay=20, eval_every=15).replace(**changes)


def weights(task): return torch.cat([t.flatten().double() for t in task.model.state_dict().values()])


def trained(kind, c, folder):
    task = kind(c)
    return fit(task, c, folder), weights(task)


@pytest.mark.parametrize('name', STATES)
def test_prolonged_equals_planned(name, tmp_path):
    kind, changes = STATES[name]
    short = toy(**changes)
    _, annealed = trained(kind, short, tmp_path/'short')
    longer = extend(tmp_path/'short', 90, tmp_path/'longer', ToyConfig, decay=25)
    assert longer == short.replace(steps=90, decay=25)
    mine, theirs = trained(kind, longer, tmp_path/'longer'), trained(kind, longer, tmp_path/'planned')
    assert torch.equal(mine[1], theirs[1]) and not torch.equal(mine[1], annealed)
    assert mine[0]['metrics'] == theirs[0]['metrics'] and mine[0]['steps'] == 90
    evaluations = [[row for row in r['curve'] if row['kind'] == 'eval'] for r, _ in (mine, theirs)]
    assert evaluations[0] == evaluations[1]
    assert trained(kind, short, tmp_path/'short')[0]['steps'] == 60  # untouched


@pytest.mark.parametrize('mode', ['min', 'max'])
def test_the_best_weights_come_along_if_they_are_from_before_the_decay(mode, tmp_path):
    best = trained(ToyTask, toy(best_mode=mode), tmp_path/'a')[0]['best']['step']
    extend(tmp_path/'a', 90, tmp_path/'b', ToyConfig)
    new = RunFolder(tmp_path/'b')
    assert (best <= 40) == (mode == 'max') == new.best.exists()
    assert new.load(new.checkpoint)['now']['best'].get('step') == (best if mode == 'max' else None)


def test_prolonged_twice(tmp_path):
    trained(ToyTask, toy(), tmp_path/'a')
    second = extend(tmp_path/'a', 90, tmp_path/'b', ToyConfig)
    trained(ToyTask, second, tmp_path/'b')
    third = extend(tmp_path/'b', 110, tmp_path/'c', ToyConfig)
    assert torch.equal(trained(ToyTask, third, tmp_path/'c')[1], trained(ToyTask, third, tmp_path/'d')[1])


def test_a_forced_restart_equals_a_planned_one(tmp_path):
    trained(ToyTask, toy(), tmp_path/'a')
    forced = extend(tmp_path/'a', 90, tmp_path/'b', ToyConfig, force=True, restart_peak=.5, restart_decay=10)
    assert forced == toy(steps=90, restart=60, restart_peak=.5, restart_decay=10)
    assert torch.equal(trained(ToyTask, forced, tmp_path/'b')[1], trained(ToyTask, forced, tmp_path/'c')[1])


def test_what_cannot_be_prolonged(tmp_path):
    def refused(why, folder, steps=90, **changes):
        with pytest.raises(UserError, match=why): extend(folder, steps, tmp_path/'new', ToyConfig, **changes)
        assert not (tmp_path/'new'/'checkpoint.pt').exists()
    trained(ToyTask, toy(), tmp_path/'a')
    refused('no checkpoint', tmp_path/'nothing')
    refused('had 60 already', tmp_path/'a', steps=60)
    refused('decay of the longer run would begin at update 31, before 40', tmp_path/'a', decay=59)
    refused('lr=', tmp_path/'a', lr=1.)
    RunFolder(tmp_path/'a').stable.unlink()
    refused('only the annealed weights of update 60 .* force=True', tmp_path/'a')
    cosine = toy(schedule='cosine', decay=0)
    trained(ToyTask, cosine, tmp_path/'cosine')
    refused('annealed|no stable phase', tmp_path/'cosine')
    refused('no stable phase', tmp_path/'cosine', force=True)
    longer = extend(tmp_path/'a', 90, tmp_path/'new', ToyConfig, force=True)
    with pytest.raises(UserError, match='holds a run already'):
        extend(tmp_path/'a', 90, tmp_path/'new', ToyConfig, force=True)
    assert longer.restart == 60


def test_a_constant_rate_is_never_annealed(tmp_path):
    c = ToyConfig(steps=30, eval_every=0)
    trained(ToyTask, c, tmp_path/'a')
    assert stable_checkpoint(tmp_path/'a', ToyConfig).name == 'checkpoint.pt'
    longer = extend(tmp_path/'a', 50, tmp_path/'b', ToyConfig)
    assert torch.equal(trained(ToyTask, longer, tmp_path/'b')[1], trained(ToyTask, longer, tmp_path/'c')[1])
