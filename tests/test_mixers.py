"Mixers of a language model: token by token or all at once, no output that depends on a later token, and their state."
import pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonnb.core.config import UserError
from reasonnb.nn.causal_attention import CausalAttention, SwiGLU
from reasonnb.systems.rust_lm.causal_haar import HaarFenwick, HaarShift, causal_filter, haar_matrix, past_blocks
from reasonnb.systems.rust_lm.decoding_cost import state_bytes
from reasonnb.systems.rust_lm.wavefield import Wavefield

WIDTH = 12
CAUSAL = {
    'attention': lambda: CausalAttention(WIDTH, 3),
    'shared keys': lambda: CausalAttention(WIDTH, 6, 2, qk_norm=True),
    'window': lambda: CausalAttention(WIDTH, 3, 1, window=5),
    'no positions': lambda: CausalAttention(WIDTH, 4, rope=False),
    'fenwick': lambda: HaarFenwick(WIDTH, 3, 32),
    'fenwick, few levels': lambda: HaarFenwick(WIDTH, 3, 32, levels=2),
    'shift': lambda: HaarShift(WIDTH, 3, 32),
    'shift, short window': lambda: HaarShift(WIDTH, 3, 4),
}
LEAKY = {mode: (lambda mode=mode: Wavefield(WIDTH, 3, 64, 16, 3, mode)) for mode in ('haar', 'fft')}
pytestmark = pytest.mark.usefixtures('one_thread')


def built(kind, dtype=torch.float64):
    torch.manual_seed(1)
    return {**CAUSAL, **LEAKY}[kind]().to(dtype)


def tokens(batch, time, seed=0, dtype=torch.float64):
    return torch.randn(batch, time, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def decoded(mixer, x, prompt=0):
    "Outputs and last state; the first `prompt` tokens are read at once."
    state, y = mixer.start(len(x)), []
    if prompt:
        first, state = mixer.prefill(x[:, :prompt])
        y = list(first.unbind(1))
    for token in x[:, prompt:].unbind(1):
        one, state = mixer.step(token, state)
        y.append(one)
    return torch.stack(y, 1), state


@pytest.mark.parametrize('kind', CAUSAL)
@settings(max_examples=15, deadline=None)
@given(batch=st.integers(1, 3), time=st.integers(1, 70), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_token_by_token_is_all_at_once(kind, batch, time, share, seed):
    mixer, x = built(kind), tokens(batch, time, seed)
    expected = mixer(x)
    for prompt in {0, int(share * time), time}:
        y, state = decoded(mixer, x, prompt)
        assert (y - expected).abs().max() < 1e-10
        assert state.length == time


@pytest.mark.parametrize('kind', CAUSAL)
@settings(max_examples=15, deadline=None)
@given(time=st.integers(2, 70), share=st.floats(0, 1, exclude_max=True), seed=st.integers(0, 99))
def test_later_tokens_change_nothing_at_all(kind, time, share, seed):
    mixer, x, place = built(kind), tokens(2, time, seed), int(share * time)
    changed = x.clone()
    changed[:, place:] = 10 * tokens(2, time - place, seed + 1)
    moved = (mixer(changed) - mixer(x)).abs().amax((0, 2))
    assert (moved[:place] == 0).all()
    assert moved[place] > 1e-4
    if place: assert (mixer(x[:, :place]) - mixer(x)[:, :place]).abs().max() < 1e-12


@pytest.mark.parametrize('kind', CAUSAL)
def test_no_gradient_comes_from_a_later_token(kind):
    mixer, x = built(kind), tokens(1, 33).requires_grad_()
    y = mixer(x)
    for place in (0, 15, 16, 31):
        gradient, = torch.autograd.grad((y[:, place] * torch.randn(WIDTH).double()).sum(), x, retain_graph=True)
        assert (gradient[:, place + 1:] == 0).all() and gradient[:, place].abs().max() > 1e-6


@pytest.mark.parametrize('kind', LEAKY)
def test_the_wavefield_fails_the_test_of_causality(kind):
    mixer, x = built(kind), tokens(2, 64)
    changed = x.clone()
    changed[:, 34:] += 1
    moved = (mixer(changed) - mixer(x)).abs().amax((0, 2))
    assert not mixer.causal and moved[:34].max() > 1e-3
    assert not hasattr(mixer, 'step')


@pytest.mark.parametrize('kind', [*CAUSAL, *LEAKY])
def test_texts_of_a_batch_do_not_mix(kind):
    mixer, x = built(kind), tokens(4, 21)
    order = torch.tensor([2, 0, 3, 1])
    assert torch.allclose(mixer(x[order]), mixer(x)[order], rtol=0, atol=1e-12)
    assert torch.allclose(mixer(x[:1]), mixer(x)[:1], rtol=0, atol=1e-12)
    assert torch.equal(mixer(x), mixer(x))


@pytest.mark.parametrize('kind', [*CAUSAL, *LEAKY])
def test_precision(kind):
    exact, x = built(kind), tokens(2, 37)
    single = built(kind, torch.float32)
    y = single(x.float())
    assert y.dtype == torch.float32 and (y - exact(x)).abs().max() < 1e-5
    with torch.autocast('cpu', torch.bfloat16): coarse = single(x.float())
    assert (coarse - exact(x)).abs().max() < .1
    if single.causal:
        with torch.autocast('cpu', torch.bfloat16): by_token, _ = decoded(single, x.float())
        assert (by_token - exact(x)).abs().max() < .1
    y.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in single.parameters())


@pytest.mark.parametrize('kind', [*CAUSAL, *LEAKY])
def test_a_layer_used_to_decode_first_can_be_trained(kind):
    mixer, x = built(kind, torch.float32), tokens(2, 9, dtype=torch.float32)
    with torch.inference_mode():
        mixer(x)
        if mixer.causal: decoded(mixer, x)
    mixer(x).sum().backward()


@pytest.mark.parametrize('kind', [*CAUSAL, *LEAKY])
def test_tables_are_no_weights(kind):
    assert set(built(kind).state_dict()) == {name for name, _ in built(kind).named_parameters()}


@pytest.mark.parametrize('kind', [*CAUSAL, *LEAKY])
@pytest.mark.parametrize('shape', [(2, WIDTH), (2, 3, WIDTH + 1), (2, 3, 4, WIDTH)])
def test_wrong_shapes_are_refused(kind, shape):
    mixer = built(kind)
    with pytest.raises(UserError, match='expected tokens of shape'): mixer(torch.zeros(shape, dtype=torch.float64))
    if not mixer.causal: return
    with pytest.raises(UserError, match=r'expected tokens of shape \(batch, 12\)'):
        mixer.step(torch.zeros(2, 1, WIDTH, dtype=torch.float64), mixer.start(2))


@pytest.mark.parametrize('make, message', [
    (lambda: CausalAttention(12, 5), 'heads=5 does not divide'),
    (lambda: CausalAttention(12, 4, 3), 'kv_heads=3 does not divide'),
    (lambda: CausalAttention(12, 4, 0), 'kv_heads=0 does not divide'),
    (lambda: CausalAttention(12, 4), 'pairs of channels'),
    (lambda: CausalAttention(12, 3, window=0), 'sees at least itself'),
    (lambda: HaarFenwick(12, 5, 8), 'heads=5 does not divide'),
    (lambda: HaarShift(12, 3, 0), 'context=0'),
    (lambda: HaarShift(12, 3, 8, levels=0), 'levels=0'),
    (lambda: Wavefield(12, 3, 64, 20), 'not a multiple of 64'),
    (lambda: Wavefield(12, 3, 64, mode='fwht'), 'fwht'),
    (lambda: Wavefield(12, 3, 8, 16, 3)(torch.zeros(1, 9, 12)), '9 tokens, but the field is spread over 8'),
    (lambda: haar_matrix(12), 'not a power of 2')])
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(UserError, match=message): make()


def test_shared_keys_equal_repeated_ones():
    shared = built('shared keys')
    full = CausalAttention(WIDTH, 6, 6, qk_norm=True).double()
    weights = shared.state_dict()
    for name in ('key.weight', 'value.weight'):
        weights[name] = weights[name].unflatten(0, (2, -1)).repeat_interleave(3, 0).flatten(0, 1)
    full.load_state_dict(weights)
    x = tokens(2, 19)
    assert torch.allclose(shared(x), full(x), rtol=0, atol=1e-12)
    assert torch.allclose(decoded(shared, x)[0], decoded(full, x)[0], rtol=0, atol=1e-12)


@settings(max_examples=15, deadline=None)
@given(window=st.integers(1, 12), time=st.integers(1, 30))
def test_a_window_is_a_mask(window, time):
    torch.manual_seed(2)
    attention, x = CausalAttention(WIDTH, 3, window=window).double(), tokens(1, time)
    q, k, v = attention.project(x)
    far = torch.ones(time, time, dtype=torch.bool).tril().logical_not() | torch.ones(time, time).tril(-window).bool()
    weights = (q @ k.mT / 2).masked_fill(far, -torch.inf).softmax(-1)
    expected = attention.out((weights @ v).transpose(1, 2).flatten(2))
    assert torch.allclose(attention(x), expected, rtol=0, atol=1e-12)
    assert decoded(attention, x)[1].keys.shape[2] <= window


def test_positions_are_relative():
    "A text that begins later has the same outputs where the window does not reach its beginning."
    attention, x = CausalAttention(WIDTH, 3, window=4).double(), tokens(1, 40)
    assert torch.allclose(attention(x)[:, 13:], attention(x[:, 10:])[:, 3:], rtol=0, atol=1e-12)
    shift = HaarShift(WIDTH, 3, 4).double()
    assert torch.allclose(shift(x)[:, 13:], shift(x[:, 10:])[:, 3:], rtol=0, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 5000))
def test_past_blocks_cut_the_past(t):
    blocks = past_blocks(t)
    assert [place for first, size in blocks for place in range(first, first + size)] == list(range(t))
    assert all(size & (size - 1) == 0 and first % size == 0 for first, size in blocks)
    sizes = [size for _, size in blocks]
    assert sizes == sorted(set(sizes), reverse=True)


def test_the_state_stays_small():
    fenwick, shift = built('fenwick', torch.float32), built('shift', torch.float32)
    states, whole = {mixer: mixer.start(1) for mixer in (fenwick, shift)}, state_bytes(shift.start(1))
    token = tokens(1, 1, dtype=torch.float32)[:, 0]
    for count in range(1, 2000):
        for mixer, state in states.items(): _, states[mixer] = mixer.step(token, state)
        assert len(states[fenwick].means) == count.bit_count() <= count.bit_length()
    assert state_bytes(states[fenwick]) == 4 * WIDTH * (1999).bit_count()
    assert state_bytes(states[shift]) == whole == 4 * WIDTH * 31


def test_a_long_constant_text_does_not_grow():
    "Means, not sums: 64 times as many equal tokens add terms, but no term grows."
    for kind in ('fenwick', 'shift'):
        y = built(kind)(tokens(1, 1).expand(-1, 4096, -1)).abs().amax(2)[0]
        assert y[64:].max() <= 4 * y[:64].max()


@settings(max_examples=25, deadline=None)
@given(power=st.integers(0, 7), seed=st.integers(0, 99))
def test_the_causal_part_of_a_haar_filter(power, seed):
    torch.manual_seed(seed)
    n = 2**power
    H, c, u = haar_matrix(n), torch.randn(n).double(), torch.randn(n, 2).double()
    assert (H @ H.T - torch.eye(n)).abs().max() < 1e-14
    assert (causal_filter(c, u) - (H.T * c @ H).tril() @ u).abs().max() < 5e-14


def test_linear_maps_come_from_the_factory():
    made = []
    def linear(n_in, n_out):
        made.append((n_in, n_out))
        return torch.nn.Linear(n_in, n_out, bias=False)
    for make in (lambda: CausalAttention(8, 2, 1, linear), lambda: HaarShift(8, 2, 8, linear),
                 lambda: Wavefield(8, 2, 8, 16, 3, linear=linear), lambda: SwiGLU(8, 20, linear)):
        made.clear()
        matrices = [m for m in make().modules() if isinstance(m, torch.nn.Linear)]
        assert len(matrices) == len(made) >= 3 and all(m.bias is None for m in matrices)


def test_swiglu():
    mlp, x = SwiGLU(8, 20), torch.randn(3, 8)
    gate, up, down = (layer.weight for layer in (mlp.gate, mlp.up, mlp.down))
    assert torch.allclose(mlp(x), (F.silu(x @ gate.T) * (x @ up.T)) @ down.T, atol=1e-6)
