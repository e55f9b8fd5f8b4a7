"""The language model as a system: configurations train, measures are measures, runs resume, bad input is one line."""
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from reasonnb.core.config import UserError
from reasonnb.core.trainer import fit
from reasonnb.lab.catalogue import canonical, resolve
from reasonnb.lab.claimtable import claims_table
from reasonnb.systems.rust_lm.claims import CLAIMS
from reasonnb.systems.rust_lm.experiments import EXPERIMENTS, SYSTEM
from reasonnb.systems.rust_lm.measures import held_out_metrics
from reasonnb.systems.rust_lm.scales import SCALES
from reasonnb.systems.rust_lm.task import build_task
from reasonnb.systems.rust_lm.writer import load_writer, ship
from reasonnb.text.recall import RecallData
from reasonnb.text.sampling import choose
from reasonnb.text.token_batches import prepare

SLUGS = [experiment.slug for experiment in EXPERIMENTS if canonical(experiment.slug) == experiment.slug]
QUICK = {'baseline_v1', 'haar_v3', 'engram_v1', 'rust_lm', 'rust_engram_muon', 'rust_bigram', 'rust_fenwick',
         'rust_int8', 'rust_wavefield_fft', 'rust_streams_distinct', 'rust_ternary', 'rust_adamw', 'rust_loops',
         'recall_shift_alone'}
SHORT = dict(steps=2, eval_every=2, schedule='constant', warmup=0, decay=0, wavefield_delay=0, restart=0,
             restart_decay=0, restart_ramp=0, restart_peak=1., validation_tokens=200, test_tokens=200, sample_tokens=3)
pytestmark = pytest.mark.usefixtures('one_thread')


def small(slug='rust_lm', **changes): return resolve(slug, 'smoke', **SHORT | changes)


# every configuration

def test_the_quick_ones_are_configurations(): assert set(SLUGS) >= QUICK


MARKED = [pytest.param(slug, marks=() if slug in QUICK else pytest.mark.slow) for slug in SLUGS]


@pytest.mark.parametrize('slug', MARKED)
def test_every_configuration_trains(slug, tmp_path):
    config = small(slug)
    record = fit(build_task(config), config, tmp_path)
    found = record['metrics']
    assert record['steps'] == 2 and 0 < found['cross_entropy'] < 2 * math.log(config.vocab)
    assert 0 <= found['accuracy'] <= 1 and found['entropy'] > 0
    assert ('bypass_cross_entropy' in found) == config.mixer.startswith('wavefield') == (found['look_ahead'] > 1e-3)
    assert ('written_well' in found) == (config.corpus != 'recall' and config.samples > 0)


def test_each_claim_has_a_test():
    ids = set(claims_table('rust_lm')['claim_id'])
    assert ids == set(CLAIMS) and len(ids) == 45


def test_the_job_is_there(): assert SYSTEM.job == 'jobs/rust_lm.ipynb' and SYSTEM.build.__name__ == 'build_task'


# measures

@pytest.fixture(scope='module')
def task(): return build_task(small())


def test_measures_do_not_depend_on_what_was_asked_before(task):
    first = task.evaluate()
    task.test()
    list(task.write(1))
    assert task.evaluate() == first


def test_measures_do_not_depend_on_the_order_of_the_windows(task):
    held = task.held['test']
    order = torch.randperm(len(held.windows), generator=torch.Generator().manual_seed(0))
    moved = replace(held, **{name: getattr(held, name)[order] for name in ('windows', 'mask', 'document')})
    first, second = (held_out_metrics(task.model, side, task.bytes_of) for side in (held, moved))
    assert first.keys() == second.keys()
    for name in first: assert first[name] == pytest.approx(second[name], abs=1e-5, nan_ok=True), name


def test_training_never_sees_a_held_out_file(task):
    sides = task.text.sides
    names = {side: set(sides[side].names) for side in sides}
    assert not names['train'] & (names['validation'] | names['test']) and not names['validation'] & names['test']


@pytest.mark.parametrize('seed', [0, 1, 2, 7])
def test_recall_never_trains_on_a_held_out_text(seed):
    data = RecallData(context=16, vocab=300)
    held = {tuple(row) for side in ('validation', 'test') for row in data.held_out(side, 16 * 200).windows.tolist()}
    drawn = {tuple(row) for step in range(200) for row in data.windows(seed, step, 4).tolist()}
    assert len(drawn) == 800 and len(held) == 400 and not drawn & held


# resuming

@pytest.mark.parametrize('slug', ['rust_lm', 'engram_v2'])
def test_a_killed_run_goes_on_as_if_nothing_had_been(slug, tmp_path):
    "Also over a restart of the schedule."
    changes = dict(schedule='wsd', decay=1, restart=3, restart_decay=1) if slug == 'engram_v2' else {}
    config = small(slug, **dict(steps=6) | changes)
    def die(step, terms):
        if step == 4: raise SystemExit
    whole = fit(build_task(config), config, tmp_path / 'whole')
    with pytest.raises(SystemExit): fit(build_task(config), config, tmp_path / 'killed', on_step=die)
    again = fit(build_task(config), config, tmp_path / 'killed')
    assert again['metrics'] == whole['metrics']
    assert [row['cross_entropy'] for row in again['curve']] == [row['cross_entropy'] for row in whole['curve']]


# the writer

@pytest.fixture(scope='module')
def shipped(tmp_path_factory):
    "A run of some updates, its task and the pair made of it."
    folder = tmp_path_factory.mktemp('writer')
    config = small()
    task = build_task(config)
    fit(task, config, folder / 'run')
    return folder, task, ship(folder / 'run', 'rust-test', folder)


def test_a_shipped_model_is_the_trained_one(shipped):
    folder, task, path = shipped
    writer = load_writer(str(path))
    for (name, kept), (_, trained) in zip(writer.model.state_dict().items(), task.model.state_dict().items()):
        torch.testing.assert_close(kept, trained, rtol=1e-3, atol=1e-6, msg=name)
    text = 'fn main() {\n'
    assert (writer.tokenizer.encode(text) == task.text.tokenizer.encode(text)).all()
    assert ''.join(writer.write(text, 8, seed=1)) == ''.join(writer.write(text, 8, seed=1))
    assert not list(writer.write(text, 0))


def changed(path, folder, **changes):
    "A pair with other content, under the same description."
    from reasonnb.core.weights import read_pair, write_pair
    state, about = read_pair(path)
    return str(write_pair(folder / 'rust-other.pt', state | changes, about))


def test_a_pair_of_another_tokenizer_is_refused(shipped, tmp_path):
    "Its vocabulary is not that of the weights."
    other = prepare(small(vocab=320)).tokenizer
    with pytest.raises(UserError, match='does not fit its own settings') as raised:
        load_writer(changed(shipped[2], tmp_path, tokenizer=other.to_json()))
    assert '\n' not in str(raised.value)


def test_no_token_is_drawn_from_weights_that_are_not_numbers(shipped, tmp_path):
    from reasonnb.core.weights import read_pair
    weights = {name: value * math.nan for name, value in read_pair(shipped[2])[0]['weights'].items()}
    with pytest.raises(UserError) as raised:
        list(load_writer(changed(shipped[2], tmp_path, weights=weights)).write('fn', 3))
    assert '\n' not in str(raised.value)
    with pytest.raises(UserError): choose(torch.full((1, 5), math.nan))


def test_damaged_weights_are_refused(shipped, tmp_path):
    path = tmp_path / 'rust-cut.pt'
    path.write_bytes(shipped[2].read_bytes()[:500])
    path.with_suffix('.json').write_bytes(shipped[2].with_suffix('.json').read_bytes())
    with pytest.raises(UserError) as raised: load_writer(str(path))
    assert '\n' not in str(raised.value)


# bad input

def test_measures_of_a_broken_network_are_refused():
    task = build_task(small())
    with torch.no_grad(): task.model.embed.weight.fill_(math.nan)
    with pytest.raises(UserError, match='not finite'): task.evaluate()


@pytest.mark.parametrize('changes, message', [
    (dict(vocab=70_000), '65536'), (dict(vocab=200), '257'), (dict(vocab=60_000), 'or more text'),
    (dict(context=2_000), 'context=2000'), 
    (dict(context=200_000, validation_tokens=200_000, test_tokens=200_000), 'context'),
    (dict(heads=3), 'kv_heads|multiple'), (dict(engram_layers=(9,)), 'numbered 0 to 1'),
    (dict(corpus='nowhere', documents=200), 'no such file'),
    (dict(engram_rows=100), 'prime'), (dict(corpus='recall', context=18), 'multiple of 4')])
def test_wrong_settings_are_one_line(changes, message):
    with pytest.raises(UserError, match=message) as raised:
        build_task(resolve('rust_lm', 'smoke', **SHORT | changes)).batch(0)
    assert '\n' not in str(raised.value)


def test_a_damaged_token_file_is_one_line_that_says_what_to_delete(tmp_path):
    config = small(documents=60, vocab=280)
    data = prepare(config, tmp_path)
    path = data.folder / 'train.tokens'
    tokens = np.frombuffer(path.read_bytes(), '<u2')
    path.write_bytes(tokens[:len(tokens) // 2].tobytes())
    with pytest.raises(UserError, match='delete it') as raised: prepare(config, tmp_path)
    assert str(data.folder) in str(raised.value) and '\n' not in str(raised.value)


def test_scales_differ_in_size_only():
    "What a scale sets is size, length, data and rates; never a part of the network but what its log has."
    allowed = set(SCALES['smoke']) | set(SCALES['laptop']) | set(SCALES['h200']) | {'ternary', 'streams'}
    parts = {'mixer', 'mtp', 'label_smoothing', 'engram_place', 'engram_muon', 'optimizer', 'rest', 'schedule'}
    assert not allowed & parts
