"Parts of the small reasoning model: states against whole rows, memories, loops, labels, its optimizer, bad input."
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from reasonnb.core.config import UserError
from reasonnb.core.gradients import Batch, accumulate_gradients
from reasonnb.lab.catalogue import resolve
from reasonnb.systems.cognate.attention import ShortConvolution, SlidingAttention
from reasonnb.systems.cognate.config import LADDER, RELEASED, CognateConfig, ladder, parameter_count
from reasonnb.systems.cognate.decoding import answer_all
from reasonnb.systems.cognate.experiments import EXPERIMENTS
from reasonnb.systems.cognate.halting import exit_log_p, exit_terms, expected_steps, prior_divergence
from reasonnb.systems.cognate.losses import loss_weights, training_terms
from reasonnb.systems.cognate.memory import ema_closed, ema_scan
from reasonnb.systems.cognate.model import CognateModel
from reasonnb.systems.cognate.recursion import TRM
from reasonnb.systems.cognate.released_optimizer import GradientFilter, make_cognate_optimizer
from reasonnb.systems.cognate.task import build_task
from reasonnb.systems.cognate.titans import TitansMemory, recurrent

pytestmark = pytest.mark.usefixtures('one_thread')
few = settings(max_examples=12, deadline=None)
SMALL = dict(vocab=19, context=12, d_model=16, layers=2, heads=2, d_ff=24, window=4, memory_width=8, memory_heads=2,
             memory_chunk=3, recursion_heads=2, outer=2, inner=1, position_rows=24)


@st.composite
def configs(draw):
    "Causal settings of all kinds."
    def pick(*values): return draw(st.sampled_from(values))
    memory = pick('none', 'ema', 'linear', 'titans')
    recursion = pick('none', 'trm', 'block')
    change = dict(memory=memory, recursion=recursion, memory_place=pick('last', 'middle', 'every'),
                  memory_gate=pick('paper', 'convex', 'add'), mlp=pick('swiglu', 'relu2'), window=pick(1, 4, 50),
                  position=pick('rope', 'learned'), prefix=pick(0, 2), layers=pick(1, 2), qk_norm=pick(True, False))
    keyed = memory in ('linear', 'titans')
    change['convolution'] = pick('none', 'blocks', 'memory', 'both') if keyed else pick('none', 'blocks')
    if memory == 'titans': change |= dict(memory_chunk=pick(1, 3, 20), memory_surprise=pick(True, False),
                                          memory_momentum=pick(True, False), memory_forgetting=pick(True, False))
    if recursion != 'none': change |= dict(halting=pick('none', 'ponder', 'entropy', 'diversity'),
                                           shared=pick(True, False), inner=pick(1, 2), outer=pick(1, 2))
    return CognateConfig(**SMALL | change)


def opened(c, seed=0):
    "A model in double precision without a weight that is zero."
    torch.manual_seed(seed)
    model = CognateModel(c).double()
    for p in model.parameters():
        nn.init.normal_(p, std=.3)
    return model


def rows(c, batch=3, time=9, seed=0):
    return torch.randint(c.vocab, (batch, time), generator=torch.Generator().manual_seed(seed))


@few
@given(configs(), st.integers(0, 99))
def test_token_by_token_is_the_parallel_pass(c, seed):
    model, ids = opened(c, seed), rows(c, seed=seed)
    state, found = model.start(3), []
    for tokens in ids.T:
        logits, state = model.step(tokens, state)
        found.append(logits)
    together = model(ids).detach()
    scale = together.abs().max()
    assert (torch.stack(found, 1) - together).abs().max() < 1e-9 * (1 + scale)


@few
@given(configs(), st.integers(1, 8))
def test_no_logit_moves_before_a_change(c, cut):
    model, ids = opened(c), rows(c)
    changed = ids.clone()
    changed[:, cut:] = (changed[:, cut:] + 1) % c.vocab
    with torch.no_grad(): a, b = model(ids), model(changed)
    assert (a[:, :cut] - b[:, :cut]).abs().max() <= 1e-10 * (1 + a.abs().max())


@few
@given(configs())
def test_parameters_are_counted_by_formula(c):
    assert sum(p.numel() for p in CognateModel(c).parameters()) == parameter_count(c)


@few
@given(st.integers(1, 9), st.integers(1, 12), st.booleans(), st.booleans(), st.booleans(), st.integers(0, 99))
def test_chunks_are_their_own_recurrent_form(chunk, time, surprise, momentum, forgetting, seed):
    torch.manual_seed(seed)
    memory = TitansMemory(6, 4, 2, True, chunk=chunk, surprise=surprise, momentum=momentum,
                          forgetting=forgetting).double()
    nn.init.normal_(memory.rates_head.weight)
    x = torch.randn(2, time, 6).double()
    mine, theirs = memory(x), recurrent(memory, x)
    assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-9)


def test_extreme_rates_give_numbers_and_gradients():
    "Everything forgotten, nothing kept, the longest steps: no nan in either direction."
    for bias in (-60., 60.):
        memory = TitansMemory(6, 4, 2, chunk=4)
        nn.init.constant_(memory.rates_head.bias, bias)
        x = torch.randn(1, 9, 6, requires_grad=True)
        memory(x).sum().backward()
        assert all(bool(p.grad.isfinite().all()) for p in memory.parameters()) and bool(x.grad.isfinite().all())


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    x = torch.randn(1, 5, 4, dtype=torch.float64, requires_grad=True)
    start = torch.randn(1, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(TitansMemory(4, 4, 2, True, chunk=2).double(), (x,))
    assert torch.autograd.gradcheck(lambda u, m: ema_closed(u, .9, m), (x, start))
    assert torch.autograd.gradcheck(SlidingAttention(4, 2, window=2, prefix=1, convolution=True).double(), (x,))
    trm = TRM(4, 2, 2, 1).double()
    assert torch.autograd.gradcheck(lambda u: trm(u).answers[-1], (x,))
    losses, logits = (torch.rand(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    for kind in ('ponder', 'entropy'):
        assert torch.autograd.gradcheck(lambda a, b, kind=kind: exit_terms(a, b, kind, .3).loss, (losses, logits))


@few
@given(st.integers(1, 30), st.floats(0, .999), st.integers(0, 99))
def test_the_mean_in_closed_form_is_the_scan(time, decay, seed):
    torch.manual_seed(seed)
    u, start = torch.randn(2, time, 3).double(), torch.randn(1, 3).double()
    assert torch.allclose(ema_closed(u, decay, start), ema_scan(u, decay, start), atol=1e-12)


@few
@given(st.integers(1, 6), st.floats(.05, .95), st.integers(0, 99))
def test_exits_are_a_distribution(loops, leave, seed):
    torch.manual_seed(seed)
    log_p = exit_log_p(3 * torch.randn(loops, 5).double())
    assert torch.allclose(log_p.exp().sum(0), torch.ones(5).double())
    steps = expected_steps(log_p)
    assert bool((steps >= 1 - 1e-9).all()) and bool((steps <= loops + 1e-9).all())
    assert bool((prior_divergence(log_p, leave) > -1e-9).all())


def test_sure_exits_have_finite_gradients():
    logits = torch.tensor([[300.], [-300.], [0.]], requires_grad=True)
    exit_terms(torch.rand(3, 1), logits, 'ponder', .01).loss.backward()
    assert bool(logits.grad.isfinite().all())


# the ladder and the labels

def masked(c, batch=4, time=10, seed=0):
    "Tokens, answers of different lengths, padding at the end."
    tokens = rows(c, batch, time, seed)
    length = torch.arange(batch) % 4 + 6
    pads = torch.arange(time) >= length[:, None]
    return tokens, (torch.arange(time) >= 4) & ~pads, pads


def test_every_rung_of_the_ladder_can_be_trained():
    base, ahead = CognateConfig(**SMALL | RELEASED), {}
    for name, c in ladder(base).items():
        torch.manual_seed(0)
        model = CognateModel(c)
        terms = training_terms(model, *masked(c))
        terms['loss'].backward()
        assert bool(terms['loss'].isfinite()) and bool(terms['answer_loss'].isfinite())
        optimizer = make_cognate_optimizer(model, c)
        optimizer.apply()
        with torch.no_grad(): a, b = (opened(c)(ids) for ids in (rows(c), (rows(c) + (torch.arange(9) > 5)) % c.vocab))
        ahead[name] = float((a - b)[:, :5].abs().max())
    assert ahead.pop('as released') > 1e-3
    assert max(ahead.values()) < 1e-9 and list(ahead) == list(LADDER)


class Whole:
    "The task of a run, as far as accumulation needs it."
    def __init__(self, c):
        torch.manual_seed(0)
        self.model = CognateModel(c).double()

    def backward(self, batch):
        terms = training_terms(self.model, batch['tokens'], batch['answers'], batch['pads'])
        terms['loss'].backward()
        return {'loss': terms['loss'].detach()}


@pytest.mark.parametrize('weighted', [True, False])
def test_pieces_weighted_by_their_labels_are_the_whole(weighted):
    c = CognateConfig(**SMALL, weighted_accumulation=weighted)
    task, (tokens, answers, pads) = Whole(c), masked(c)
    weights = loss_weights(answers, pads, c).double()
    found = []
    for pieces in (1, 2):
        accumulate_gradients(task, Batch(dict(tokens=tokens, answers=answers, pads=pads), weights), pieces)
        found.append(torch.cat([p.grad.flatten() for p in task.model.parameters() if p.grad is not None]))
    gap = float((found[0] - found[1]).norm() / found[0].norm())
    assert gap < 1e-10 if weighted else gap > 1e-4


def test_saved_weights_give_the_same_logits(tmp_path):
    "Also those of the released form, whose memory is part of its state."
    for c in (CognateConfig(**SMALL), CognateConfig(**SMALL | RELEASED)):
        model = CognateModel(c)
        model(rows(c))
        torch.save(model.state_dict(), tmp_path / 'weights.pt')
        again = CognateModel(c)
        again.load_state_dict(torch.load(tmp_path / 'weights.pt'))
        assert torch.equal(model(rows(c, seed=1)), again(rows(c, seed=1)))


def test_a_few_updates_learn_the_next_token():
    "A row that repeats: the repaired form learns it with each optimizer that is meant to work."
    for optimizer in ('adamw', 'muon'):
        c = CognateConfig(**SMALL, optimizer=optimizer, lr=1e-2, matrix_lr=2e-2, answers_only=False)
        torch.manual_seed(0)
        model, ids = CognateModel(c), torch.arange(12)[None] % 3
        made, mask = make_cognate_optimizer(model, c), torch.ones(1, 12, dtype=torch.bool)
        for _ in range(25):
            model.zero_grad()
            loss = training_terms(model, ids, mask, ~mask)['loss']
            loss.backward()
            made.apply()
        assert loss < .5


# decoding and bad input

@settings(max_examples=5, deadline=None)
@given(st.lists(st.lists(st.integers(0, 18), min_size=1, max_size=7), min_size=1, max_size=5), st.integers(1, 4))
def test_answers_do_not_depend_on_other_prompts(prompts, batch):
    model = opened(CognateConfig(**SMALL, convolution='both', halting='ponder'))
    assert answer_all(model, prompts, 4, batch=batch) == [answer_all(model, [prompt], 4)[0] for prompt in prompts]


def test_more_loops_than_trained():
    shared, own = (CognateModel(CognateConfig(**SMALL, shared=shared)) for shared in (True, False))
    ids = rows(shared.config)
    assert shared(ids, 5).shape == (3, 9, 19) and len(shared.states(ids, 5).answers) == 6
    with pytest.raises(UserError, match='only 2 loops have weights'): own(ids, 3)
    with pytest.raises(UserError, match='must not be negative'): shared(ids, -1)


@pytest.mark.parametrize('change, said', [
    (dict(d_model=15), 'does not divide'), (dict(recursion_heads=3), 'recursion_heads=3'),
    (dict(memory_heads=3), 'memory_heads=3'), (dict(window=0), 'window=0'), (dict(vocab=1), 'vocab=1'),
    (dict(causal=False, window=1), 'halved'), (dict(halt_threshold=0.), 'a probability'),
    (dict(grokfast_decay=1.), r'\[0, 1\)'), (dict(outer_least=3), 'more than outer'), (dict(lr=0.), 'give lr too'),
    (dict(muon_rate=.1), 'muon_rate'), (dict(shared=False, outer_least=1), 'shared=True'),
    (dict(memory='nothing'), 'expected one of'), (dict(d_model=2, heads=2), 'pairs of channels')])
def test_settings_that_do_not_fit_are_refused(change, said):
    with pytest.raises(UserError, match=said) as caught: CognateConfig(**SMALL | change)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('call, said', [
    (lambda: ShortConvolution(4, 0), 'taps=0'), (lambda: TitansMemory(4, 4, 2, chunk=0), 'chunk=0'),
    (lambda: GradientFilter([], 'band'), 'low_pass, high_pass'), (lambda: GradientFilter([], decay=1.), r'\[0, 1\)'),
    (lambda: exit_terms(torch.zeros(1, 1), torch.zeros(1, 1), 'hope'), 'ponder, entropy'),
    (lambda: SlidingAttention(8, 2)(torch.zeros(2, 3)), 'expected tokens')])
def test_parts_refuse_what_they_cannot_do(call, said):
    with pytest.raises(UserError, match=said): call()


@pytest.mark.parametrize('experiments', [EXPERIMENTS[first::4] for first in range(4)])
def test_every_configuration_can_be_trained(experiments):
    for experiment in experiments:
        config = resolve(experiment.slug, 'smoke')
        task = build_task(config)
        terms = task.backward(task.batch(config.steps - 1))
        assert bool(terms['loss'].isfinite()), experiment.slug
        assert task.asked(1), experiment.slug
