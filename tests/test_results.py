"Intervals against scipy and textbook cases; records as they really lie about on a disk; the logs' own numbers."
import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from reasonnb.core import statistics
from reasonnb.core.config import UserError
from reasonnb.core.sequential import first_pairs
from reasonnb.lab import catalogue, results

numbers = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8)


@settings(deadline=None)
@given(numbers)
def test_interval_is_the_t_interval_of_scipy(values):
    found = statistics.interval(values)
    if np.ptp(values) < 1e-6: return  # scipy gives nan there
    low, high = stats.t.interval(.95, len(values)-1, np.mean(values), stats.sem(values))
    assert found == pytest.approx((np.mean(values), low, high), rel=1e-6, abs=1e-6)


@settings(deadline=None)
@given(
    st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
    st.sampled_from([.9, .95, .99]),
)
def test_wilson_is_scipys(case, level):
    k, n = case
    expected = stats.binomtest(k, n).proportion_ci(level, method='wilson')
    assert statistics.wilson(k, n, level)[1:] == pytest.approx((expected.low, expected.high), abs=1e-9)


@settings(deadline=None)
@given(numbers, numbers)
def test_difference_is_scipys_welch(a, b):
    if min(np.ptp(a), np.ptp(b)) < 1e-3: return  # scipy warns of cancellation
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(.95)
    assert statistics.difference(a, b)[1:] == pytest.approx((expected.low, expected.high), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize('a, n, b, m, low, high', [(56/70, 70, 48/80, 80, .0524, .3339), (.9, 10, .3, 10, .1705, .8090),
                                                    (0., 10, 0., 20, -.1611, .2775), (0., 10, 0., 10, -.2775, .2775)])
def test_two_shares_without_spread_follow_newcombe(a, n, b, m, low, high):
    "Worked examples of Newcombe (1998), table II, method 10."
    assert statistics.difference([a, a, a], [b, b, b], trials=(n, m))[1:] == pytest.approx((low, high), abs=1e-4)


def test_welch_covers_the_truth_in_95_of_100():
    "Three seeds against four, one side five times as noisy: what the ledger really meets."
    rng = np.random.default_rng(0)
    hits = sum(low <= .1 <= high for _, low, high in (
        statistics.difference(rng.normal(.7, .05, 3), rng.normal(.6, .01, 4)) for _ in range(3000)))
    assert .92 < hits/3000 < .96  # 93.7 % in the limit; equal noise gives 96 %


def test_degenerate_samples():
    nan = math.isnan
    assert nan(statistics.interval([]).value)
    assert statistics.interval([2.])[0] == 2 and nan(statistics.interval([2.]).high)
    assert nan(statistics.interval([1., math.nan]).value)
    assert nan(statistics.difference([], [1, 2]).value) and nan(statistics.difference([1.], [1., 2.]).low)
    assert nan(statistics.difference([1., math.inf], [1., 2.]).low)
    assert statistics.difference([3, 3, 3], 2) == (1, 1, 1)
    assert statistics.difference([3, 3], [1, 1]) == (2, 2, 2)
    assert nan(statistics.wilson(0, 0).value)


def test_pairs_have_one_seed_whatever_the_order_of_the_runs():
    "One side is shuffled and has seeds that the other has not; a seed moves its value by more than the sides differ."
    ours = {seed: 10. * seed for seed in (4, 0, 7, 3, 1)}
    theirs = {seed: 10. * seed + .5 for seed in (1, 2, 0, 3)}
    assert first_pairs(ours, theirs) == [(0., .5), (10., 10.5), (30., 30.5)]
    assert first_pairs(theirs, ours, theirs) == [(.5, 0., .5), (10.5, 10., 10.5), (30.5, 30., 30.5)]
    many = {seed: float(seed) for seed in reversed(range(7))}
    assert first_pairs(many, many) == [(float(seed),) * 2 for seed in range(5)]  # cut to a planned number
    assert first_pairs({0: 1., 1: 2.}, {1: 1., 2: 2.}) == []


class _Config(dict):
    def to_dict(self): return dict(self)


@pytest.fixture
def world(tmp_path, monkeypatch):
    "A catalogue of three experiments, `twin` being `one` under another name, and a writer of records."
    known = {'one': _Config(lr=.003), 'two': _Config(lr=.01), 'twin': _Config(lr=.003)}

    def resolve(slug, scale='smoke', **overrides):
        if slug not in known: raise UserError(f'unknown experiment {slug}')
        return known[slug]
    monkeypatch.setattr(catalogue, 'resolve', resolve)
    monkeypatch.setattr(catalogue, 'canonical', lambda slug, scale: next(k for k in known if known[k] == resolve(slug)))

    def write(slug, seed, value, lr=None, finished='2026-11-21T10:00:00', folder='', **more):
        path = tmp_path/(folder or slug)/f'laptop-s{seed}'
        path.mkdir(parents=True)
        record = dict(
            log='sudoku_transformer',
            experiment=slug,
            scale='laptop',
            seed=seed,
            finished=finished,
            seconds=60.,
            params=58_000,
            config=dict(lr=lr or known[slug]['lr'], seed=seed),
            metrics=dict(puzzle_accuracy=value),
            protocol='none',
        )
        (path/'record.json').write_text(json.dumps(record | more))
    write.root = tmp_path
    return write


def test_broken_files_are_named_and_the_rest_is_read(world):
    world('one', 0, .5)
    bad = {
        'torn': b'{"log": "a',
        'empty': b'',
        'list': b'[1, 2]',
        'keys': b'{"experiment": "one"}',
        'binary': b'\xff\xfe\x00',
        'words': b'{"experiment": "one", "scale": "laptop", "seed": 1, "metrics": {"loss": "low"}}',
        'null': b'null',
    }
    for name, content in bad.items():
        (world.root/name).mkdir()
        (world.root/name/'record.json').write_bytes(content)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        records = results.load_records(world.root)
    assert records['experiment'].tolist() == ['one']
    told = [str(w.message) for w in caught]
    assert all(any(f'/{name}/' in text for text in told) for name in bad) and len(told) == len(bad)
    assert not any('\n' in text for text in told)


def test_no_runs_at_all(tmp_path):
    records = results.load_records(tmp_path)
    assert len(records) == 0 and 'scale' in records
    assert list(results.table(records).columns) == list(results.TABLE_COLUMNS)
    with pytest.raises(UserError, match='no such folder'): results.load_records(tmp_path/'nowhere')


def test_runs_of_takes_twins_and_leaves_out_changed_and_repeated_runs(world):
    world('one', 0, .5)
    world('one', 1, .6)
    world('twin', 2, .7)
    world('one', 0, .9, finished='2026-11-22T10:00:00', folder='again')  # newer: it counts
    world('one', 3, .1, lr=.5, folder='override')
    world('two', 4, .2)
    runs = results.runs_of(results.load_records(world.root), 'one', 'laptop')
    assert results.samples(runs, 'puzzle_accuracy') == [.9, .6, .7]
    assert len(results.runs_of(results.load_records(world.root), 'one', 'smoke')) == 0
    with pytest.raises(UserError): results.runs_of(results.load_records(world.root), 'nobody', 'laptop')


def test_runs_come_in_the_order_of_their_seeds(world):
    "Seed 2 was finished first, seed 0 last."
    for seed in (2, 1, 0): world('one', seed, seed/10, finished=f'2026-11-2{9 - seed}T10:00:00')
    runs = results.runs_of(results.load_records(world.root), 'one', 'laptop')
    assert runs['seed'].tolist() == [0, 1, 2] and results.samples(runs, 'puzzle_accuracy') == [0., .1, .2]


def test_a_lost_value_is_nan_and_an_unknown_metric_is_an_error(world):
    world('one', 0, None)
    world('one', 1, .5)
    runs = results.runs_of(results.load_records(world.root), 'one', 'laptop')
    first, second = results.samples(runs, 'puzzle_accuracy')
    assert math.isnan(first) and second == .5
    with pytest.raises(KeyError): results.samples(runs, 'cell_accuracy')
    assert results.samples(runs, 'hours') == pytest.approx([1/60, 1/60])


def test_table_names_the_changes_and_the_cost(world):
    for seed, value in enumerate([.1, .2, .3]): world('one', seed, value)
    world('one', 0, .9, lr=.5, folder='override')
    rows = results.table(results.load_records(world.root)).set_index('changes')
    expected = [.2, .2-.2484138, .2+.2484138, 3]
    assert rows.loc['', ['mean', 'low', 'high', 'n']].tolist() == pytest.approx(expected, abs=1e-6)
    assert rows.loc['lr=0.5', 'n'] == 1 and math.isnan(rows.loc['lr=0.5', 'low'])
    assert rows.loc['', 'params'] == 58_000 and rows.loc['', 'protocol'] == 'none' and rows.loc['', 'seconds'] == 60


def test_of_two_runs_with_one_seed_a_table_has_the_newer(world):
    world('one', 0, .9, finished='2026-11-22T10:00:00')
    world('one', 0, .5, folder='older')
    row, = results.table(results.load_records(world.root)).itertuples()
    assert (row.mean, row.n) == (.9, 1)


def test_a_table_keeps_the_scales_apart(world):
    world('one', 0, .9, finished='2026-11-22T10:00:00')
    world('one', 0, .5, scale='log', folder='large')
    table = results.table(results.load_records(world.root))
    assert table.set_index('scale')['mean'].to_dict() == dict(laptop=.9, log=.5)


def test_a_change_is_what_changes_the_idea(world):
    known = dict(lr=.003, seed=5)
    world('one', 0, .5, config=known | dict(device='cuda', compile=True, eval_every=7, checkpoint_every=3))
    for seed, (name, value) in enumerate([('batch_size', 7), ('precision', 'bfloat16'), ('steps', 9)], 1):
        world('one', seed, .5, config=known | {name: value})
    changes = results.as_catalogued(results.load_records(world.root)).sort_values('seed')['changes']
    assert changes.tolist() == ['', 'batch_size=7', 'precision=bfloat16', 'steps=9']


def test_a_run_is_known_by_its_test_set():
    record = dict(config=dict(best_metric='accuracy'), metrics=dict(loss=1., accuracy=.5, test_accuracy=.4))
    assert results.headline(record) == 'test_accuracy'
    del record['metrics']['test_accuracy']
    assert results.headline(record) == 'accuracy'


def test_the_contradictions_of_the_logs_are_found():
    found = results.contradictions()
    assert set(zip(found['slug'], found['split'])) >= {
        ('bs4096', 'extreme-25k rating 51+'),
        ('unrolled', 'easy-1k'),
        ('extreme_400k', 'extreme-25k'),
    }
    assert len(found) < 15  # a test that flags everything would flag nothing
    assert results.reported('bs4096', split='extreme-25k rating 51+').conflict == '0.713 in final (TRM table)'
    assert results.reported('recur_add').conflict == ''


@pytest.mark.parametrize('slug, metric, value, split, at', [
    ('recur_add', 'puzzle_accuracy', .906, 'mixed-2.5k', 'final'),
    ('baseline', 'puzzle_accuracy', .643, 'easy-1k', 'peak'),
    ('no_iteration', 'cell_accuracy', .643, 'easy-1k', 'final'),
    ('energy_run1_post_fix', 'cell_accuracy', .139, 'val', '20'),
    ('cosine_no_sam', 'hours', 2, 'train', 'total'),
    ('baseline_v1', 'tokens_per_s', 660, 'train', 'average'),
])
def test_primary_values_of_the_logs(slug, metric, value, split, at):
    found = results.reported(slug, metric)
    assert (found.value, found.split, found.at) == (pytest.approx(value), split, at)


def test_every_value_of_the_logs_can_be_asked_for():
    frame = results.log_values()
    for slug, metric in set(zip(frame['slug'], frame['metric'])): results.reported(slug, metric)
    assert math.isnan(results.reported('recur_add', 'nothing').value) and results.reported('nobody').at == ''
