"The ledger: every claim of the logs gets a verdict, and the rules behind the verdicts at their edges."
import json
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from reasonnb.core.config import UserError
from reasonnb.core.statistics import Interval, wilson
from reasonnb.lab import catalogue, claims, results
from reasonnb.systems.looped.claims import CLAIMS

NAN = math.nan


class _Config(dict):
    def to_dict(self): return dict(self)


class World:
    "A catalogue in which every slug of the logs has a configuration of its own, and runs held in memory."
    def __init__(self, monkeypatch):
        self.alike, self.own, self.metrics, self.records = {}, {}, {}, []
        known = set(catalogue.sections()['slug'])

        def resolve(slug, scale='smoke', **overrides):
            if slug not in known: raise UserError(f'unknown experiment {slug!r}')
            return _Config(name=self.alike.get(slug, slug))
        monkeypatch.setattr(catalogue, 'resolve', resolve)
        monkeypatch.setattr(catalogue, 'canonical', lambda slug, scale: resolve(slug)['name'])
        system = SimpleNamespace(
            logs=set(catalogue.sections()['log']),
            claims=self.own,
            metrics=self.metrics,
            scales={'smoke': {}, 'laptop': {}},
        )
        monkeypatch.setattr(catalogue, 'systems', lambda: (system,))
        self.known = known

    def run(self, slug, values, metric='puzzle_accuracy', **metrics):
        for seed, value in enumerate(values):
            self.records.append(dict(
                log='',
                experiment=slug,
                scale='laptop',
                seed=seed,
                finished='',
                config=dict(name=self.alike.get(slug, slug)),
                metrics={metric: value} | metrics,
                seconds=100.,
            ))

    def frame(self, tmp_path):
        for number, record in enumerate(self.records):
            folder = tmp_path/'runs'/f'{number:04}'
            folder.mkdir(parents=True, exist_ok=True)
            (folder/'record.json').write_text(json.dumps(record))
        (tmp_path/'runs').mkdir(exist_ok=True)
        return results.load_records(tmp_path/'runs')


@pytest.fixture
def world(monkeypatch): return World(monkeypatch)


def verdict_of(world, tmp_path, claim_id):
    log = {'st': 'sudoku_transformer', 'eq': 'equilibrium'}[claim_id[:2]]
    return claims.ledger(world.frame(tmp_path), log=log).set_index('claim_id').loc[claim_id]


def test_every_claim_gets_a_verdict_when_all_has_run(world, tmp_path):
    rng, rows = np.random.default_rng(0), claims.claims_table()
    metrics = sorted(set(rows['metric']) - {'hours'})
    for slug in sorted(world.known):
        for seed in range(3):
            world.run(slug, [0.])
            drawn = {m: float(rng.uniform()) for m in metrics}
            world.records[-1] |= dict(seed=seed, metrics=drawn | dict(n_test=1000, collapsed=0.))
    book = claims.ledger(world.frame(tmp_path))
    assert book['claim_id'].tolist() == rows['claim_id'].tolist() and len(book) == 266
    assert set(book['verdict']) == set(claims.VERDICTS)
    waiting = book[book['verdict'] == 'not run']
    reasons = set(waiting['reason'].str.partition(';')[0])
    assert reasons == {'no predicate yet', 'no function yet for a claim about a part'}
    assert set(waiting.loc[waiting['relation'] != 'holds', 'claim_id']) == claims.NEEDS_FUNCTION
    judged = book[book['verdict'] != 'not run']
    assert judged[['effect', 'low', 'high']].notna().all().all() and (judged['n_left'] == 3).all()
    assert (judged['low'] <= judged['effect'] + 1e-12).all() and (judged['effect'] <= judged['high'] + 1e-12).all()


def test_every_claim_says_what_is_missing_when_nothing_has_run(world, tmp_path):
    book = claims.ledger(world.frame(tmp_path))
    assert set(book['verdict']) == {'not run'} and (book['reason'] != '').all()
    assert claims.counts(book).loc['all'].tolist() == [0, 0, 0, 266, 266, 0]


def test_the_ledger_of_the_project_as_it_stands():
    book = claims.ledger()
    assert len(book) == 266 and set(book['verdict']) <= set(claims.VERDICTS)
    assert (book.loc[book['verdict'] == 'not run', 'reason'] != '').all()


@pytest.mark.parametrize('left, right, verdict', [
    ([.70, .72, .71], [.50, .52, .51], 'holds'),
    ([.50, .52, .51], [.70, .72, .71], 'contradicted'),
    ([.40, .60, .80], [.50, .52, .51], 'undecided'),
    ([.50, .50, .50], [.50, .50, .50], 'undecided'),
    ([1., 1., 1.], [0., 0., 0.], 'holds'),
    ([.70, .72], [.50, .52, .51], 'not run'),
    ([.70], [.50, .52, .51], 'not run'),
    ([.70, .72, None], [.50, .52, .51], 'undecided')])
def test_greater(world, tmp_path, left, right, verdict):
    world.run('recur_add', left)
    world.run('recur_baseline', right)
    row = verdict_of(world, tmp_path, 'st_recur_add_gt_base')
    assert row['verdict'] == verdict and (row['n_left'], row['n_right']) == (len(left), len(right))
    assert row['log_value'] == .1084
    if len(left) == 2:
        assert row['reason'] == '2 seeds of 3: recur_add'
        assert row['effect'] == pytest.approx(.2) and row['low'] < .2
    if len(left) == 1: assert math.isnan(row['low'])
    if None in left: assert 'without a finite' in row['reason'] and math.isnan(row['effect'])


def test_few_seeds_on_the_right_are_as_bad_as_on_the_left(world, tmp_path):
    world.run('recur_add', [.70, .72, .71])
    world.run('recur_baseline', [.50, .52])
    row = verdict_of(world, tmp_path, 'st_recur_add_gt_base')
    assert (row['verdict'], row['reason']) == ('not run', '2 seeds of 3: recur_baseline')


def test_a_share_of_a_bucket_has_the_noise_of_the_bucket(world, tmp_path):
    world.metrics['puzzle_accuracy'] = 'puzzle_accuracy/rating_0'
    sizes = {'n_test': 1000, 'n_test/rating_0': 50}
    for slug in ('recur_add', 'recur_baseline'):
        world.run(slug, [0., 0., 0.], metric='puzzle_accuracy/rating_0', **sizes)
    row = verdict_of(world, tmp_path, 'st_recur_add_gt_base')
    assert row['high'] == pytest.approx(wilson(0, 50).high)


def test_a_clean_zero_on_both_sides_keeps_the_noise_of_the_test_set(world, tmp_path):
    world.run('recur_add', [0., 0., 0.], n_test=1000)
    world.run('recur_baseline', [0., 0., 0.], n_test=1000)
    row = verdict_of(world, tmp_path, 'st_recur_add_gt_base')
    assert row['verdict'] == 'undecided' and row['high'] == pytest.approx(.003827, abs=1e-5)


@pytest.mark.parametrize('left, verdict', [
    ([.70, .705, .70], 'holds'),
    ([.80, .805, .80], 'contradicted'),
    ([.6, .7, .8], 'undecided'),
])
def test_about_equal(world, tmp_path, left, verdict):
    "st_no_x_same: the log calls 0.7 points the same, so the band is 2 points."
    world.run('no_x_after_init', left)
    world.run('recur_add', [.70, .70, .705])
    row = verdict_of(world, tmp_path, 'st_no_x_same')
    assert row['verdict'] == verdict and row['reason'] == 'tolerance 0.02'


@pytest.mark.parametrize('left, verdict', [
    ([.955, .956, .957], 'holds'),
    ([.93, .931, .932], 'contradicted'),
    ([.93, .94, .95], 'undecided'),
])
def test_at_least_a_number_has_no_tolerance(world, tmp_path, left, verdict):
    world.run('eq_take4_gap94', left, metric='test_accuracy')
    row = verdict_of(world, tmp_path, 'eq_94')
    assert row['verdict'] == verdict and row['n_right'] == 0 and math.isnan(row['log_value'])  # a target is no result


@pytest.mark.parametrize('left, verdict', [([.69, .691, .692], 'holds'), ([.60, .601, .602], 'contradicted')])
def test_at_least_an_experiment_tolerates_two_points(world, tmp_path, left, verdict):
    world.run('eq_gap2_symmetry', left, metric='test_accuracy')
    world.run('eq_ref_symmetric', [.70, .70, .70], metric='test_accuracy')
    assert verdict_of(world, tmp_path, 'eq_symmetry')['verdict'] == verdict


def test_claims_about_a_part_are_not_judged_by_the_whole(world, tmp_path):
    world.run('recur_add', [.7, .71, .72])
    world.run('recur_baseline', [.5, .51, .52])
    row = verdict_of(world, tmp_path, 'st_recur_hard_gain')
    assert (row['verdict'], row['reason']) == ('not run', 'no function yet for a claim about a part')


def test_what_is_judged_by_the_plain_metric_is_what_the_log_compared():
    "Where the log prints both sides, the difference of its main values is the margin, unless the claim is special."
    # the log compares peaks where the statement does not say so; prints several values of one thing;
    # states a number as such
    known = {'st_sam_closes_gap', 'st_sam_ceiling', 'st_sam_gain_shrinks', 'cg_accum_equals_big_batch'}
    rows = claims.claims_table()
    rows = rows[rows['relation'].isin(['>', '<', '>=', '~=']) & rows['margin'].notna() & (rows['status'] != 'target')]
    checked = 0
    for claim in rows.to_dict('records'):
        gap = claims._reported_gap(claim)
        if math.isnan(gap): continue
        if claim['metric'] in (*claims._RATIOS, 'relative_loss_drop'): continue
        if claim['claim_id'] in claims.NEEDS_FUNCTION | known: continue
        assert claims.log_value(claim) == pytest.approx(gap, abs=2e-3), claim['claim_id']
        checked += 1
    assert checked > 60


@pytest.mark.parametrize('solved, n, verdict', [
    ([0., 0., 0.], 1000, 'holds'),
    ([0., 0., 0.], 200, 'undecided'),
    ([.1, 0., 0.], 1000, 'contradicted'),
    ([.001, .002, .003], 1000, 'undecided'),
    ([0., 0.], 1000, 'not run'),
])
def test_solves_none(world, tmp_path, solved, n, verdict):
    world.run('no_iteration', solved, n_test=n)
    row = verdict_of(world, tmp_path, 'st_no_iter_zero')
    assert row['verdict'] == verdict and 0 <= row['low'] <= row['effect'] <= row['high'] and row['log_value'] == 0


def test_solves_none_needs_the_number_of_boards(world, tmp_path):
    world.run('no_iteration', [0., 0., 0.])
    row = verdict_of(world, tmp_path, 'st_no_iter_zero')
    assert row['verdict'] == 'not run' and 'n_test' in row['reason']


@pytest.mark.parametrize('losses, verdict', [
    ([None]*3, 'holds'),
    ([1., 2., 3.], 'contradicted'),
    ([1., None, 2.], 'undecided'),
    ([None]*2, 'not run'),
])
def test_diverges(world, tmp_path, losses, verdict):
    world.run('carry', losses, metric='loss')
    assert verdict_of(world, tmp_path, 'st_carry_diverges')['verdict'] == verdict


@pytest.mark.parametrize('flags, verdict', [
    ([1., 1., 1.], 'holds'),
    ([0., 0., 0.], 'contradicted'),
    ([1., 0., 0.], 'undecided'),
])
def test_collapses(world, tmp_path, flags, verdict):
    world.run('scale_iter32', flags, metric='collapsed')
    assert verdict_of(world, tmp_path, 'st_iter32_collapse')['verdict'] == verdict


def test_a_missing_metric_is_said(world, tmp_path):
    world.run('recur_add', [1., 2., 3.], metric='other')
    world.run('recur_baseline', [1., 2., 3.], metric='other')
    row = verdict_of(world, tmp_path, 'st_recur_add_gt_base')
    assert (row['verdict'], row['reason']) == ('not run', 'no metric puzzle_accuracy in the runs')


def test_a_claim_about_one_configuration_compares_nothing(world, tmp_path):
    world.alike['recur_baseline'] = 'recur_add'
    world.run('recur_add', [.5, .6, .7])
    row = verdict_of(world, tmp_path, 'st_recur_add_gt_base')
    assert (row['verdict'], row['reason']) == ('undecided', 'same configuration') and math.isnan(row['effect'])


def test_other_scales_and_changed_runs_do_not_count(world, tmp_path):
    world.run('recur_add', [.7, .71, .72])
    world.run('recur_baseline', [.5, .51, .52])
    for record in world.records[:3]: record['config'] = dict(name='something else')
    for record in world.records[3:]: record['scale'] = 'smoke'
    row = verdict_of(world, tmp_path, 'st_recur_add_gt_base')
    assert row['verdict'] == 'not run'
    assert row['reason'] == 'no runs of recur_add at laptop as catalogued (3 with changes)'


def test_a_system_maps_metrics_and_judges_claims_of_its_own(world, tmp_path):
    world.metrics['puzzle_accuracy'] = 'solved_share'
    for slug, level in (('recur_add', .7), ('recur_baseline', .5)):
        hard = level - (.4 if level < .6 else .1)
        world.run(slug, [level, level+.01, level-.01], metric='solved_share', easy=level, hard=hard)

    def hardest_gain(left, right):
        def gain(bucket): return [a['metrics'][bucket] - b['metrics'][bucket] for a, b in zip(left, right)]
        return gain('hard'), gain('easy')
    world.own |= {'st_recur_hard_gain': hardest_gain,
                  'st_norm_pred_bounded': lambda left, right: [r['metrics']['norm'] < 5 for r in left],
                  'st_plateau': lambda left, right: [r['metrics']['absent'] for r in left],
                  'st_fail_peak4': lambda left, right: left[7],
                  'rl_fix_hash_primes': lambda left, right: True, 'rl_fix_gqa_check': lambda left, right: False}
    world.run('norm_pred', [1., 2., 9.], metric='norm')
    world.run('insight18_stable60k', [1., 1., 1.])
    world.run('failure_analysis', [1., 1., 1.])
    book = claims.ledger(world.frame(tmp_path)).set_index('claim_id')
    assert book.loc['st_recur_add_gt_base', 'verdict'] == 'holds'
    gain, bounded, plateau = (book.loc[c] for c in ('st_recur_hard_gain', 'st_norm_pred_bounded', 'st_plateau'))
    assert gain['verdict'] == 'holds' and gain['effect'] == pytest.approx(.3)
    assert bounded['verdict'] == 'undecided' and bounded['effect'] == pytest.approx(2/3)
    assert (plateau['verdict'], plateau['reason']) == ('not run', 'no metric absent in the runs')
    assert book.loc['st_fail_peak4', 'reason'] == 'its function failed: IndexError: list index out of range'
    assert [book.loc[c, 'verdict'] for c in ('rl_fix_hash_primes', 'rl_fix_gqa_check')] == ['holds', 'contradicted']
    assert book.loc['rl_fix_mtp_params', 'reason'] == 'no predicate yet'


def test_runs_that_share_their_training_are_paired_by_seed(world, tmp_path):
    world.own |= {'st_ema_warmup_lt': CLAIMS['st_ema_warmup_lt']}
    level = [.9, .1, .5, .3, .7]  # of each seed; averaging costs a tenth
    world.run('ema_warmup', [x - .1 for x in level[:4]])
    world.run('warmup', level)
    world.records.pop(4)  # seeds 0 to 3 on one side, 1 to 4 on the other
    row = verdict_of(world, tmp_path, 'st_ema_warmup_lt')
    assert row['effect'] == pytest.approx(-.1) and row['verdict'] == 'holds'


def test_judge_at_the_edges():
    edge = Interval(.01, 0., .02)
    assert [claims.judge(r, edge, .02) for r in ('>', '<', '>=', '~=')] == ['undecided', 'undecided', 'holds', 'holds']
    assert {claims.judge(r, Interval(.1, NAN, NAN), .02) for r in ('>', '<', '>=', '~=')} == {'undecided'}
    with pytest.raises(UserError, match='relation'): claims.judge('is', edge)


def test_the_file_is_the_same_for_the_same_runs_and_one_verdict_is_one_line(world, tmp_path):
    world.run('recur_add', [.7, .71, .72])
    world.run('recur_baseline', [.5, .51, .52])
    records = world.frame(tmp_path)
    first = claims.write_ledger(tmp_path/'a.csv', records=records).read_bytes()
    shuffled = records.sample(frac=1, random_state=1)
    assert claims.write_ledger(tmp_path/'b.csv', records=shuffled).read_bytes() == first
    for record in world.records[:3]: record['metrics']['puzzle_accuracy'] -= .5
    other = claims.write_ledger(tmp_path/'c.csv', records=world.frame(tmp_path)).read_bytes()
    changed = [(a, b) for a, b in zip(first.decode().split('\n'), other.decode().split('\n')) if a != b]
    (before, after), = changed  # a verdict is one line
    assert ',holds,' in before and ',contradicted,' in after
    back = pd.read_csv(tmp_path/'a.csv')
    assert list(back.columns) == list(claims.LEDGER_COLUMNS) and len(back) == 266


def test_one_log_only(world, tmp_path):
    book = claims.ledger(world.frame(tmp_path), log='equilibrium')
    assert set(book['log']) == {'equilibrium'} and len(book) == 33
    with pytest.raises(UserError, match="unknown log 'sudoku'"): claims.ledger(world.frame(tmp_path), log='sudoku')
    with pytest.raises(UserError, match="did you mean 'laptop'"): claims.ledger(world.frame(tmp_path), scale='latpop')
