"Evaluation of language models: metrics, sampling, generated Rust and tests for leaks, on cases whose answer is known."
import math
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from reasonnb.core.config import UserError
from reasonnb.text import leak_alarms, leak_tests, metrics, rust_text, sampling
from reasonnb.text.causality import causality_report

QUICK = settings(max_examples=30, deadline=None)


# Metrics

@QUICK
@given(st.integers(2, 300), st.floats(.001, .9))
def test_no_smoothed_loss_is_below_its_floor(vocab, epsilon):
    logits = 4 * torch.randn(20, vocab, dtype=torch.float64, generator=torch.Generator().manual_seed(vocab))
    targets = torch.arange(20) % vocab
    floor = metrics.smoothed_floor(epsilon, vocab)
    assert metrics.smoothed_loss(logits, targets, epsilon) >= floor - 1e-9
    best = torch.full((1, vocab), epsilon / vocab, dtype=torch.float64)
    best[0, 0] += 1 - epsilon
    assert float(metrics.smoothed_loss(best.log(), targets[:1], epsilon)) == pytest.approx(floor, abs=1e-9)


def test_the_interval_covers_as_a_bootstrap_does():
    rng, inside, booted, repeats = np.random.default_rng(0), 0, 0, 300

    def draw(files):
        tokens = np.exp(rng.normal(5, .8, files)).round() + 1
        return tokens * (2.5 + .3 * rng.normal(size=files)), tokens
    for _ in range(repeats):
        nats, tokens = draw(25)
        _, low, high = metrics.ratio_interval(nats, tokens)
        inside += low <= 2.5 <= high
        drawn = rng.integers(25, size=(300, 25))
        low, high = np.quantile(nats[drawn].sum(1) / tokens[drawn].sum(1), (.025, .975))
        booted += low <= 2.5 <= high
    assert .91 <= inside / repeats <= .985
    assert inside >= booted - .03 * repeats  # the bootstrap is too narrow for few files


def test_intervals_of_few_files():
    assert metrics.ratio_interval([2., 4.], [1., 2.]) == (2., 2., 2.)
    value, low, high = metrics.ratio_interval([2.], [1.])
    assert value == 2 and math.isnan(low) and math.isnan(high)
    assert all(math.isnan(x) for x in metrics.ratio_interval([], []))
    assert metrics.ratio_interval([2., 0., 4.], [1., 0., 2.])[0] == 2  # a file without tokens counts for nothing


def windows(**changed):
    "Two files, the second in two windows."
    held = dict(windows=torch.tensor([[0, 1, 2], [0, 3, 1], [3, 1, 2]]), document=torch.tensor([0, 1, 1]),
                mask=torch.tensor([[True, True], [True, True], [False, True]]), names=['a', 'b'],
                bytes=np.array([4, 9]), nats=None)
    return SimpleNamespace(**{**held, **changed})


def uniform(ids): return torch.zeros(*ids.shape, 4)


def test_evaluation_of_files():
    scores = metrics.evaluate_files(uniform, windows(), batch=2)
    assert scores.tokens.tolist() == [2, 3] and scores.bytes.tolist() == [4, 9]
    assert scores.cross_entropy == pytest.approx(math.log(4)) and scores.entropy == pytest.approx(math.log(4))
    assert scores.bits_per_byte == pytest.approx(2 * 5 / 13)
    by_length = metrics.evaluate_files(uniform, windows(bytes=None), bytes_of=torch.tensor([9, 1, 2, 3]))
    assert by_length.bytes.tolist() == [3, 6]
    assert len(scores.to_frame()) == 2


@pytest.mark.parametrize('call, message', [
    (lambda: metrics.evaluate_files(uniform, windows(bytes=None)), 'bytes_of'),
    (lambda: metrics.evaluate_files(uniform, windows(windows=torch.zeros(0, 3))), 'no windows'),
    (lambda: metrics.evaluate_files(lambda ids: uniform(ids) * math.nan, windows()), 'not finite'),
    (lambda: metrics.evaluate_files(uniform, windows()).floor_gap([1.]), '1 known nats'),
    (lambda: metrics.smoothed_floor(-.1, 4), 'epsilon=-0.1')])
def test_metrics_refuse(call, message):
    with pytest.raises(UserError, match=message): call()


# Sampling

@QUICK
@given(st.lists(st.floats(-20, 20), min_size=2, max_size=12), st.integers(1, 12), st.floats(.01, 1), st.integers(0, 99))
def test_what_is_cut_never_comes(logits, top_k, top_p, seed):
    logits, rng = torch.tensor([logits]), torch.Generator().manual_seed(seed)
    drawn = sampling.choose(logits.expand(50, -1), 1., top_k, top_p, rng)
    p = logits.double().softmax(-1)[0]
    kept = p.argsort(descending=True, stable=True)[:top_k]
    share = p[kept] / p[kept].sum()
    kept = kept[share.cumsum(0) - share < top_p + 1e-9]
    assert set(drawn.tolist()) <= set(kept.tolist())


def test_a_seed_gives_a_text_and_leaves_torch_alone():
    decoder = sampling.window_decoder(lambda ids: torch.randn(1, ids.shape[1], 30, generator=torch.Generator()
                                                              .manual_seed(int(ids.sum()))), 8)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, again, other = (list(sampling.stream(decoder, [1, 2], 40, seed=seed)) for seed in (7, 7, 8))
    assert first == again != other and torch.rand(1) == expected


@QUICK
@given(st.text('aé€✓😀\0', max_size=30), st.integers(1, 4))
def test_text_comes_whole_however_its_bytes_are_cut(text, size):
    data = text.encode('utf-8', 'replace')
    pieces = list(sampling.whole_characters(data[i:i + size] for i in range(0, len(data), size)))
    assert ''.join(pieces) == data.decode() and all(pieces)


# Generated Rust

PROGRAM = '''use std::fmt; // ( [
pub struct Point<T> { x: T, y: T }
impl<T: fmt::Debug> fmt::Debug for Point<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let c = '{'; let s = r#"}}"#;
        match (c, s.len()) { ('a'..='z', n) if n > 2 => write!(f, "({:?}", self.x), _ => Ok(()) }
    }
}
fn main() {
    let v: Vec<u8> = (0..9).map(|i| { let j = i + 1; j * 2 }).collect();
    for (i, x) in v.iter().enumerate() { println!("{i} {x}"); }
}
'''


def test_good_rust_parses_wherever_it_is_cut_off():
    assert rust_text.parses(PROGRAM, cut=False)
    places = range(len(PROGRAM) // 3, len(PROGRAM))
    share = np.mean([rust_text.parses(PROGRAM[:place]) for place in places])
    assert share > .9, share
    assert not any(rust_text.parses(PROGRAM[:place], cut=False) for place in range(420, len(PROGRAM) - 3))
    assert all(rust_text.bracket_balance(PROGRAM[:place]) == 1 for place in places)


@pytest.mark.parametrize('old, new', [('{ x: T', '{ x T'), ('impl<T:', 'impl<T: :'), ('(&self,', '(&self,('),
                                      ('let c =', 'let ='), ('fn fmt', 'fn fn fmt')])
def test_an_error_in_the_middle_is_not_forgiven(old, new):
    broken = PROGRAM.replace(old, new, 1)
    assert broken != PROGRAM
    assert not rust_text.parses(broken) and 0 < rust_text.error_share(broken) <= 1
    assert not rust_text.parses(broken[:-20])


@QUICK
@given(st.text('fn(){}[];=,"\'/* \naé', max_size=60))
def test_any_text_is_judged(text):
    row = rust_text.judge([text], 'fn f() {}')
    assert list(row) == ['parse_share', 'error_share', 'bracket_balance', 'distinct_3', 'longest_copy']
    assert all(0 <= row[name] <= 1 for name in list(row)[:4])


@QUICK
@given(st.text('ab', max_size=24), st.text('abc', max_size=40))
def test_longest_copy_is_that_of_all_spans(text, training):
    spans = [text[i:j] for i in range(len(text)) for j in range(i, len(text) + 1)]
    assert rust_text.longest_copy(text, training) == max((len(span) for span in spans if span in training), default=0)


# Leaks

class LM(nn.Module):
    "A small language model around a mixing of positions."
    def __init__(self, mix=None, vocab=20, width=12):
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(vocab, width), mix, nn.Linear(width, vocab)
        self.drop = nn.Dropout(.3)

    def forward(self, ids):
        x = self.drop(self.embed(ids))
        return self.head(x.cumsum(1).tanh() + (self.mix(x) if self.mix else 0))


class Look(nn.Module):
    "Reads the token a number of positions ahead, behind a gate."
    def __init__(self, ahead, gate=1.):
        super().__init__()
        self.ahead, self.gate = ahead, nn.Parameter(torch.tensor(gate))

    def forward(self, x): return self.gate * x.roll(-self.ahead, 1)


def outcomes(report): return {check.name: check.outcome for check in report.checks}


@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)


def test_the_model_stays_as_it_was():
    model = LM().train()
    before, state = deepcopy(model.state_dict()), torch.random.get_rng_state()
    ids = torch.randint(20, (4, 9), generator=torch.Generator())
    report = causality_report(model, 20, 10, noise_steps=2, bypassed=model, labels=(ids[:, :-1], ids[:, 1:]))
    assert outcomes(report)['later tokens changed'] == 'passed'
    assert model.training and model.embed.weight.dtype == torch.float32 and not model.embed._forward_hooks
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize('ahead', [1, 2, 7])
def test_the_pair_that_leaks_is_named(ahead):
    report = causality_report(LM(Look(ahead)), 20, 10)
    found = {check.name: check for check in report.checks}
    assert found['later tokens changed'].finding.startswith(f'position 0 reads token {ahead} ')
    assert 'position 0 has a slope of' in found['gradient by later tokens'].finding
    assert found['gradient by later tokens'].finding.endswith(f'token {ahead}')
    assert found['prefix'].outcome == 'failed' and not report.passed
    assert np.triu(report.influence, 1).any() and report.by_gradient


def test_a_closed_or_tiny_gate_hides_nothing():
    for gate in (0., 1e-6): assert not causality_report(LM(Look(1, gate)), 20, 10).passed
    assert causality_report(LM(Look(1, 0.)), 20, 10, open_zeros=False).passed


def test_dropout_that_is_always_on_is_chance_and_no_leak():
    class Noisy(nn.Module):
        def forward(self, x): return nn.functional.dropout(x, .5)
    report = outcomes(causality_report(LM(Noisy()), 20, 10))
    assert report['same batch twice'] == 'failed'
    assert report['later tokens changed'] == report['gradient by later tokens'] == 'passed'


def test_memory_kept_between_calls_is_told_from_a_leak():
    class Kept(nn.Module):
        past = 0.
        def forward(self, x):
            before, self.past = self.past, x.detach().mean()
            return x + before
    model = LM(Kept())
    report = outcomes(causality_report(model, 20, 10))
    assert [name for name, outcome in report.items() if outcome == 'failed'] == ['same batch twice']
    report = causality_report(lambda ids: model.eval()(ids), 20, 10)  # a function cannot be copied
    assert not report.passed and outcomes(report)['later tokens changed'] == 'not run'


def test_float64_that_does_not_run_falls_back():
    class Single(nn.Module):
        def forward(self, x):
            if x.dtype != torch.float32: raise TypeError('float32 only')
            return x
    report = causality_report(LM(Single()), 20, 10)
    assert report.precision == 'float32' and report.passed


def test_outputs_as_of_hugging_face():
    class Wrapped(LM):
        def forward(self, ids): return SimpleNamespace(logits=super().forward(ids), loss=None)
    assert causality_report(Wrapped(), 20, 10).passed


def test_excluded_tokens_are_no_difference():
    class Excluding(LM):
        def forward(self, ids): return super().forward(ids).index_fill(-1, torch.tensor([3]), -torch.inf)
    assert causality_report(Excluding(), 20, 10).passed


def test_a_model_of_one_length_only():
    class Fixed(nn.Module):
        def forward(self, x):
            if x.shape[1] != 10: raise ValueError('10 tokens')
            return x
    report = outcomes(causality_report(LM(Fixed()), 20, 10))
    assert report['prefix'] == 'not run' and report['later tokens changed'] == 'passed'


@pytest.mark.parametrize('model, message', [
    (nn.Linear(3, 3), r'cannot be run on ids \(4, 10\)'), (lambda ids: ids, 'expected logits'),
    (lambda ids: torch.full((*ids.shape, 3), math.nan), 'NaN'), (LM(vocab=5), 'cannot be run')])
def test_what_cannot_be_tested_is_one_line(model, message):
    with pytest.raises(UserError, match=message) as error: causality_report(model, 20, 10)
    assert '\n' not in str(error.value)


def test_generation_with_half_of_the_layers():
    model = LM(Look(1)).eval()
    def bypassed(ids):
        return model.head(model.embed(ids).cumsum(1).tanh())
    checks = {check.name: check for check in causality_report(model, 20, 10, bypassed=bypassed).checks}
    assert checks['generation equals training'].outcome == 'failed'


def test_noise_is_learned_by_looking_ahead():
    causal, leaky = (leak_alarms.learns_noise(lambda: LM(mix), 20, 60) for mix in (None, Look(1)))
    assert causal.outcome == 'passed' and leaky.outcome == 'failed'
    with pytest.raises(UserError, match='steps=0'): leak_alarms.learns_noise(LM, 20, 0)


@QUICK
@given(st.integers(1, 6), st.integers(0, 2**31))
def test_the_first_reader_and_what_it_reads(ahead, seed):
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(9, (2, 8), generator=rng)
    others = (ids + torch.randint(1, 9, (2, 8), generator=rng)) % 9
    model = leak_tests.subject(lambda x: nn.functional.one_hot(x.roll(-ahead, 1), 9).float(), ids, others)
    assert leak_tests.future_tokens(model).finding.startswith(f'position 0 reads token {ahead} ')
