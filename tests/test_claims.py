"The ledger: every claim of the logs gets a verdict, by the rule of its row and of its claim test, also at the edges."
import inspect
import json
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from reasonnb.core.claimtest import CannotShow, ClaimTest
from reasonnb.core.config import UserError
from reasonnb.core.statistics import Interval
from reasonnb.lab import catalogue, claims, claimtable, results
from reasonnb.lab.verdicts import judge

NAN = math.nan
COMPARED = ('>', '<', '>=', '<=', '~=')  # relations of two numbers
RATES = ('holds', 'diverges', 'collapses')  # relations that are true or false of a run
FINISHED = ('sudoku_transformer', 'equilibrium')  # logs whose claims can all be put to runs


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
        monkeypatch.setattr(catalogue, 'known', lambda slugs: known.issuperset(filter(None, slugs)))
        system = SimpleNamespace(
            logs=set(catalogue.sections()['log']),
            claims=self.own,
            metrics=self.metrics,
            scales={'smoke': {}, 'laptop': {}, 'log': {}},
        )
        monkeypatch.setattr(catalogue, 'systems', lambda: (system,))
        self.known = known

    def run(self, slug, values, metric='puzzle_accuracy', scale='laptop', first=0, **metrics):
        "A run for each value, with seeds from `first` on; None is a value that is not finite."
        for seed, value in enumerate(values, first):
            self.records.append(dict(
                log='',
                experiment=slug,
                scale=scale,
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


@pytest.fixture
def judged(world, tmp_path):
    "The row of the ledger of one claim, by the runs of the world."
    def row(claim_id, scale='laptop'):
        book = claims.ledger(world.frame(tmp_path), scale, ids={claim_id})
        return book.set_index('claim_id').loc[claim_id]
    return row


@pytest.fixture(scope='module')
def book():
    "The ledger of the project as it stands."
    return claims.ledger(results.load_records('reference'))


# The whole ledger

def test_every_claim_gets_a_verdict_when_all_has_run(world, tmp_path):
    rng, rows = np.random.default_rng(0), claims.claims_table()
    metrics = sorted(set(rows['metric']) - {'hours'})
    for slug in sorted(world.known):
        for seed in range(3):
            drawn = {m: float(rng.uniform(.1, .9)) for m in metrics}
            world.run(slug, [0.], first=seed)
            world.records[-1]['metrics'] = drawn | dict(n_test=1000, collapsed=0.)
    found = claims.ledger(world.frame(tmp_path))
    assert found['claim_id'].tolist() == rows['claim_id'].tolist() and len(found) == 266
    waiting = found[found['verdict'] == 'not run']
    reasons = set(waiting['reason'].str.partition(';')[0])
    assert reasons == {'no predicate yet', 'no function yet for a claim about a part'}
    assert set(waiting.loc[waiting['relation'] != 'holds', 'claim_id']) == claims.NEEDS_FUNCTION
    rest = found[found['verdict'] != 'not run']
    assert set(rest['verdict']) <= set(claims.JUDGED) and (rest['n_left'] == 3).all()
    assert rest['effect'].notna().all() and set(rest.loc[rest['low'].isna(), 'verdict']) <= {'undecided'}
    rest = rest[rest['low'].notna()]
    assert (rest['low'] <= rest['effect'] + 1e-12).all() and (rest['effect'] <= rest['high'] + 1e-12).all()
    rates = rest[rest['relation'].isin(RATES)]
    assert set(rates['verdict']) == {'undecided'}, 'three runs say nothing about most runs'


def test_every_claim_says_what_is_missing_when_nothing_has_run(world, tmp_path):
    found = claims.ledger(world.frame(tmp_path))
    assert set(found['verdict']) == {'not run'} and (found['reason'] != '').all()
    counts = claims.counts(found)
    assert list(counts.columns) == [*claims.VERDICTS, 'claims', 'by_chance']
    assert counts.loc['all'].tolist() == [0, 0, 0, 0, 0, 266, 266, 0]


def test_what_misses_by_chance_counts_intervals_only():
    found = pd.DataFrame(dict(log='x', verdict=['holds', 'contradicted', 'smaller than claimed', 'undecided'] * 5
                              + ['cannot show', 'not run'] * 50, n_left=5))
    assert claims.counts(found).loc['all', ['cannot show', 'claims', 'by_chance']].tolist() == [50, 120, 1]
    checks = pd.DataFrame(dict(log='x', verdict=['holds'] * 20, n_left=0))
    assert claims.counts(pd.concat([found, checks])).loc['all', 'by_chance'] == 1


def test_the_ledger_of_the_project_as_it_stands(book):
    assert len(book) == 266 and set(book['verdict']) <= set(claims.VERDICTS)
    unanswered = book[book['verdict'].isin(['not run', 'cannot show'])]
    assert (unanswered['reason'] != '').all()
    assert not book['reason'].str.contains('its test failed|no metric').any()


def test_the_ledger_in_git_is_that_of_the_records_in_git(book):
    "After `reasonnb adopt` it is; records that are removed by hand need `claims.write_ledger`."
    made = book.to_csv(index=False, float_format='%.4g', lineterminator='\n')
    assert (catalogue.root()/'figures/ledger.csv').read_text() == made


def test_the_file_is_the_same_for_the_same_runs_and_one_verdict_is_one_line(world, tmp_path):
    world.run('recur_add', [.7, .71, .72])
    world.run('recur_baseline', [.5, .515, .52])
    which = dict(log='sudoku_transformer', ids={'st_recur_add_gt_base', 'st_recur_add_gt_mem', 'st_no_x_same'})
    records = world.frame(tmp_path)
    first = claims.write_ledger(tmp_path/'a.csv', records=records, **which).read_bytes()
    shuffled = records.sample(frac=1, random_state=1)
    assert claims.write_ledger(tmp_path/'b.csv', records=shuffled, **which).read_bytes() == first
    for record in world.records[:3]: record['metrics']['puzzle_accuracy'] -= .5
    other = claims.write_ledger(tmp_path/'c.csv', records=world.frame(tmp_path), **which).read_bytes()
    changed = [(a, b) for a, b in zip(first.decode().split('\n'), other.decode().split('\n')) if a != b]
    (before, after), = changed  # a verdict is one line
    assert ',holds,' in before and ',contradicted,' in after
    assert list(pd.read_csv(tmp_path/'a.csv').columns) == list(claims.LEDGER_COLUMNS)


def test_one_log_only(world, tmp_path):
    found = claims.ledger(world.frame(tmp_path), log='equilibrium')
    assert set(found['log']) == {'equilibrium'} and len(found) == 33
    with pytest.raises(UserError, match="unknown log 'sudoku'"): claims.ledger(world.frame(tmp_path), log='sudoku')
    with pytest.raises(UserError, match="did you mean 'laptop'"): claims.ledger(world.frame(tmp_path), scale='latpop')


# Comparisons of two experiments

@pytest.mark.parametrize('left, right, verdict', [
    ([.70, .72, .71], [.50, .515, .51], 'holds'),
    ([.50, .515, .51], [.70, .72, .71], 'contradicted'),
    ([.30, .55, .80], [.10, .34, .60], 'holds'),  # seeds far apart, pairs alike
    ([.70, .76, .64], [.50, .46, .56], 'undecided'),  # seeds close together, pairs not
    ([.25, .20, .15], [0.1, .1, .1], 'undecided'),  # outside zero at 95 %, not at the level of three seeds
    ([.40, .60, .80], [.50, .52, .51], 'undecided'),
    ([.50, .501, .499], [.50, .50, .50], 'smaller than claimed'),  # than 10.8 points
    ([1., 1., 1.], [0., 0., 0.], 'undecided'),  # values that are all the same show no spread
    ([.70, .72, None], [.50, .52, .51], 'undecided')])
def test_greater(world, judged, left, right, verdict):
    world.run('recur_add', left)
    world.run('recur_baseline', right)
    row = judged('st_recur_add_gt_base')
    assert row['verdict'] == verdict and (row['n_left'], row['n_right']) == (3, 3)
    assert row['log_value'] == .1084 and row['tested'] == 'boards solved'
    if None in left: assert row['reason'] == '1 runs without a finite value' and math.isnan(row['effect'])
    else: assert bool(row['reason']) == (verdict == 'undecided'), 'what more seeds would cost is said'


def test_less_is_greater_the_other_way_round(world, judged):
    world.run('eq_fail_high_beta', [.90, .902, .901], metric='test_accuracy')
    world.run('beta_0_22_fixed', [.92, .921, .922], metric='test_accuracy')
    assert judged('eq_high_beta_worse')['verdict'] == 'holds'
    for record in world.records[:3]: record['metrics']['test_accuracy'] += .04
    assert judged('eq_high_beta_worse')['verdict'] == 'contradicted'


@pytest.mark.parametrize('apart, tolerance, verdict', [
    (.010, None, 'smaller than claimed'),  # the log gives no margin, so two points are worth a name
    (.010, .005, 'undecided'),
    (.001, .005, 'smaller than claimed'),
])
def test_without_a_margin_of_the_log_a_tolerance_stands_for_it(world, judged, apart, tolerance, verdict):
    world.own['eq_width'] = ClaimTest(tolerance=tolerance)
    world.run('eq_work_width256', [.9, .9 + apart/10, .9 - apart/10], metric='test_accuracy')
    world.run('eq_ref_width128', [.9, .9, .9], metric='test_accuracy')
    row = judged('eq_width')
    assert row['verdict'] == verdict and row['low'] < -apart/2 and row['high'] > apart/2


@pytest.mark.parametrize('seeds, used', [(2, 0), (3, 3), (4, 3), (5, 5), (7, 5), (8, 8), (12, 8), (22, 21)])
def test_seeds_between_two_analyses_are_not_used(world, judged, seeds, used):
    "Every seed beyond those of the analysis would turn the verdict round."
    world.run('recur_add', [.70 + .001*(i % 3) for i in range(used)] + [0.] * (seeds - used))
    world.run('recur_baseline', [.5] * seeds)
    row = judged('st_recur_add_gt_base')
    assert (row['verdict'], row['n_left'], row['n_right']) == ('holds' if used else 'not run', used, used)
    if not used: assert row['reason'] == '2 seeds of 3: recur_add, 2 seeds of 3: recur_baseline'


def test_sides_are_paired_by_seed_and_unequal_sets_cut_to_what_they_share(world, judged):
    world.run('recur_add', [.9, .71, .72, .73, .1], first=0)
    world.run('recur_baseline', [.51, .515, .53], first=1)
    row = judged('st_recur_add_gt_base')
    assert (row['verdict'], row['n_left'], row['n_right']) == ('holds', 3, 3)
    assert row['effect'] == pytest.approx((.2 + .205 + .2)/3)


@pytest.mark.parametrize('seeds, reason', [
    ((3, 4), 'the sides share 1 seeds, 3 are needed'),
    ((9, 2), '2 seeds of 3: recur_baseline'),
    ((9, 3), 'the sides share 0 seeds, 3 are needed'),
])
def test_seeds_of_one_side_only_are_no_pairs(world, judged, seeds, reason):
    world.run('recur_add', [.7, .71, .72])
    world.run('recur_baseline', [.5] * seeds[1], first=2 if seeds[0] == 3 else 9)
    row = judged('st_recur_add_gt_base')
    assert (row['verdict'], row['reason'], row['n_left']) == ('not run', reason, 0) and math.isnan(row['effect'])


@pytest.mark.parametrize('left, verdict', [
    ([.50, .501, .50], 'holds'),
    ([.40, .60, .50], 'undecided'),
    ([.30, .305, .30], 'holds'),  # what makes things worse gives no gain either
    ([.51, .511, .51], 'holds'),  # within two points
    ([.60, .601, .60], 'contradicted'),
])
def test_no_gain(world, judged, left, verdict):
    world.run('proj_add_rerun', left)
    world.run('baseline', [.50, .50, .501])
    row = judged('st_proj_add_no_gain')
    assert (row['verdict'], row['reason'].split(';')[0]) == (verdict, 'tolerance 0.02')


@pytest.mark.parametrize('left, verdict', [
    ([.70, .701, .70], 'holds'),
    ([.80, .805, .80], 'contradicted'),
    ([.60, .605, .60], 'contradicted'),
    ([.6, .7, .8], 'undecided'),
])
def test_about_equal(world, judged, left, verdict):
    "st_preds_concat: the log calls less than a point the same, so the band is 2 points."
    world.run('recur_concat_nopred', left)
    world.run('recur_concat', [.70, .70, .701])
    row = judged('st_preds_concat')
    assert (row['verdict'], row['reason'].split(';')[0]) == (verdict, 'tolerance 0.02')


def test_sameness_has_the_error_of_an_analysis_on_each_side_a_difference_on_both_together(world, judged):
    "Mean and standard error are such that the two levels of three seeds, 99 % and 99.5 %, part."
    step = .012*math.sqrt(3)  # the standard error of these three is .012, and t is 9.9 or 14.1 standard errors
    world.run('recur_add', [.5 + .144 - step, .5 + .144, .5 + .144 + step])
    world.run('recur_baseline', [.5, .5, .5])
    assert judged('st_recur_add_gt_base')['verdict'] == 'undecided'
    world.run('recur_concat_nopred', [.5 - step/7.2, .5, .5 + step/7.2])
    world.run('recur_concat', [.5, .5, .5])
    assert judged('st_preds_concat')['verdict'] == 'holds'


def test_the_band_is_as_wide_as_what_the_log_called_the_same(world, judged):
    world.run('mlp_mixer', [.70, .701, .70])
    world.run('extreme_2_7m', [.72, .721, .721])
    margin = claims.claims_table().set_index('claim_id').loc['st_mixer_same', 'margin']
    row = judged('st_mixer_same')
    assert row['reason'].split(';')[0] == f'tolerance {max(.02, abs(margin)):.2g}'
    assert row['verdict'] == ('holds' if abs(margin) > .03 else 'undecided')


@pytest.mark.parametrize('left, verdict', [([.69, .691, .691], 'holds'), ([.60, .601, .602], 'contradicted')])
def test_at_least_an_experiment_tolerates_two_points(world, judged, left, verdict):
    world.run('eq_gap2_symmetry', left, metric='test_accuracy')
    world.run('eq_ref_symmetric', [.70, .70, .70], metric='test_accuracy')
    assert judged('eq_symmetry')['verdict'] == verdict


@pytest.mark.parametrize('left, verdict', [
    ([.955, .956, .957], 'holds'),
    ([.93, .931, .932], 'contradicted'),
    ([.93, .94, .95], 'undecided'),
])
def test_at_least_a_number_has_no_tolerance(world, judged, left, verdict):
    world.run('eq_take4_gap94', left, metric='test_accuracy')
    row = judged('eq_94')
    assert row['verdict'] == verdict and row['n_right'] == 0 and math.isnan(row['log_value'])  # a target is no result


def test_judge_at_the_edges():
    edge, point = Interval(.01, 0., .02), Interval(0., 0., 0.)
    assert [judge(r, edge, .02) for r in COMPARED] == ['undecided', 'undecided', 'holds', 'holds', 'holds']
    assert judge('<', edge, margin=.01) == 'smaller than claimed' and judge('<', edge) == 'undecided'
    assert [judge(r, point, .02, .02) for r in '><'] == ['smaller than claimed'] * 2
    assert [judge(r, point) for r in '><'] == ['undecided'] * 2  # no margin, no bar for a small effect
    assert {judge(r, Interval(.1, NAN, NAN), .02, .02) for r in COMPARED} == {'undecided'}
    with pytest.raises(UserError, match='relation'): judge('is', edge)


# What cannot show

@pytest.mark.parametrize('left, right, verdict, said', [
    ([0., 0., 0.], [0., 0., 0.], 'cannot show', 'not past the plateau'),
    ([.04, .03, .04], [.001, .002, .001], 'cannot show', 'not past the plateau'),
    ([.995, .99, .985], [.99, .985, .995], 'cannot show', 'over 98%'),
    ([.40, .401, .402], [.001, .002, .001], 'holds', ''),  # one side is past it
    ([.995, .996, .995], [.981, .981, .982], 'holds', 'over 98%'),  # sure all the same
])
def test_plateau_and_ceiling(world, judged, left, right, verdict, said):
    world.run('recur_add', left)
    world.run('recur_baseline', right)
    row = judged('st_recur_add_gt_base')
    assert row['verdict'] == verdict and said in row['reason'] and bool(said) == bool(row['reason'])
    assert math.isfinite(row['effect']), 'the interval is printed with every verdict that has one'


@pytest.mark.parametrize('n, verdict', [(5, 'undecided'), (8, 'holds')])
def test_two_humps_are_compared_by_the_median(world, judged, n, verdict):
    "One seed that stays on the plateau; unanimous signs of eight pairs are enough, of five not."
    world.run('recur_add', [.8] * (n - 1) + [.02])
    world.run('recur_baseline', [.5] * (n - 1) + [.01])
    row = judged('st_recur_add_gt_base')
    assert row['verdict'] == verdict and row['effect'] == pytest.approx(.3)
    assert row['reason'].startswith(f'runs that left the plateau: {n - 1} of {n} (') and 'median' in row['reason']
    assert math.isnan(row['low']) == (n < 8)


def test_a_metric_that_is_no_share_of_boards_has_no_plateau(world, judged):
    world.run('baseline', [.02, .021, .022], metric='cell_accuracy')
    world.run('no_intermediate', [.01, .0105, .012], metric='cell_accuracy')
    assert judged('st_supervision_cell')['verdict'] == 'holds'


def test_one_configuration_compares_nothing(world, judged):
    world.alike['recur_baseline'] = 'recur_add'
    world.run('recur_add', [.5, .6, .7])
    row = judged('st_recur_add_gt_base')
    assert (row['verdict'], row['reason']) == ('cannot show', 'both sides have the same configuration at this scale')
    assert math.isnan(row['effect']) and row['n_left'] == 0
    world.own['st_recur_add_gt_base'] = ClaimTest(versus='recur_gated')  # another side, another question
    world.run('recur_gated', [.3, .405, .5])
    assert judged('st_recur_add_gt_base')['verdict'] == 'holds'


def test_what_a_scale_cannot_show_is_judged_at_another(world, judged):
    world.own['st_recur_add_gt_base'] = ClaimTest(cannot='the cause does not occur')
    for scale in ('laptop', 'log'):
        world.run('recur_add', [.7, .71, .72], scale=scale)
        world.run('recur_baseline', [.5, .515, .52], scale=scale)
    row, at_log = judged('st_recur_add_gt_base'), judged('st_recur_add_gt_base', scale='log')
    assert (row['verdict'], row['reason'], row['tested']) == ('cannot show', 'the cause does not occur', '')
    assert math.isnan(row['effect']) and (at_log['verdict'], at_log['n_left']) == ('holds', 3)


def test_a_function_may_find_that_nothing_can_show(world, judged):
    def measure(record):
        if record['seed'] == 1: raise CannotShow('the run is too short')
        return 1.
    world.own['st_plateau'] = ClaimTest(left=measure)
    world.run('insight18_stable60k', [.5, .5])
    assert judged('st_plateau')['verdict'] == 'not run', 'two seeds are not even asked'
    world.run('insight18_stable60k', [.5], first=2)
    row = judged('st_plateau')
    assert (row['verdict'], row['reason'], row['n_left']) == ('cannot show', 'the run is too short', 3)


# Solving none, and what is true or false of a run

@pytest.mark.parametrize('solved, n, verdict', [
    ([0., 0., 0.], 1000, 'holds'),
    ([0., 0., 0.], 200, 'undecided'),  # two hundred boards cannot show what a thousand showed
    ([0., 0., .003], 1000, 'undecided'),  # the worst seed decides, not the mean
    ([.02, .01, .01], 1000, 'contradicted'),
    ([.1, 0., 0.], 1000, 'undecided'),  # one seed of three solves some
    ([0., None, 0.], 1000, 'undecided'),
    ([0., 0.], 1000, 'not run'),
])
def test_solves_none(world, judged, solved, n, verdict):
    world.run('no_iteration', solved, n_test=n)
    row = judged('st_no_iter_zero')
    assert row['verdict'] == verdict and row['log_value'] == 0
    if verdict == 'not run': return
    if None in solved: assert row['reason'] == '1 runs without a finite value' and math.isnan(row['effect'])
    else: assert 0 <= row['low'] <= row['effect'] <= row['high']


def test_boards_of_more_seeds_are_no_more_boards(world, judged):
    world.run('no_iteration', [0.] * 8, n_test=200)
    assert judged('st_no_iter_zero')['verdict'] == 'undecided'


def test_solves_none_needs_the_number_of_boards(world, judged):
    world.run('no_iteration', [0., 0., 0.])
    row = judged('st_no_iter_zero')
    assert row['verdict'] == 'not run' and 'n_test' in row['reason']


@pytest.mark.parametrize('losses, verdict', [
    ([None] * 8, 'holds'),
    ([None] * 5, 'undecided'),
    ([None] * 7, 'undecided'),  # five of them are used
    ([1.] * 8, 'contradicted'),
    ([None] * 7 + [1.], 'undecided'),
    ([None] * 12 + [1.], 'holds'),
    ([None] * 2, 'not run'),
])
def test_diverges_in_most_runs(world, judged, losses, verdict):
    world.run('carry', losses, metric='loss')
    row = judged('st_carry_diverges')
    assert row['verdict'] == verdict
    if verdict != 'not run': assert row['effect'] == pytest.approx(losses[:row['n_left']].count(None)/row['n_left'])


@pytest.mark.parametrize('flag, verdict', [(1., 'holds'), (0., 'contradicted')])
def test_collapses_in_most_runs(world, judged, flag, verdict):
    world.run('beta_0_20_annealed', [flag] * 8, metric='collapsed')
    assert judged('eq_anneal_collapses')['verdict'] == verdict


def test_a_rate_of_pairs(world, judged):
    "A number above zero is what a pair of runs says yes with."
    world.own['eq_schedule_unstable'] = ClaimTest(versus='beta_0_25_fixed',
                                                  pair=lambda a, b: a['metrics']['fall'] - b['metrics']['fall'])
    world.run('eq_disc5_fixed_vs_schedule', [9.] * 8, metric='fall', collapsed=0.)
    world.run('beta_0_25_fixed', [2.] * 8, metric='fall', collapsed=0.)
    assert judged('eq_schedule_unstable')['verdict'] == 'holds'
    for record in world.records[8:]: record['metrics']['fall'] = 11.
    assert judged('eq_schedule_unstable')['verdict'] == 'contradicted'


# What stands in the way

def test_a_missing_metric_is_said(world, judged):
    world.run('recur_add', [1., 2., 3.], metric='other')
    world.run('recur_baseline', [1., 2., 3.], metric='other')
    row = judged('st_recur_add_gt_base')
    assert (row['verdict'], row['reason']) == ('not run', 'no metric puzzle_accuracy in the runs')


def test_other_scales_and_changed_runs_do_not_count(world, judged):
    world.run('recur_add', [.7, .71, .72])
    world.run('recur_baseline', [.5, .51, .52], scale='smoke')
    for record in world.records[:3]: record['config'] = dict(name='something else')
    row = judged('st_recur_add_gt_base')
    assert row['verdict'] == 'not run'
    assert row['reason'] == 'no runs of recur_add at laptop as catalogued (3 with changes)'


def test_a_claim_about_a_part_waits_for_its_test(world, judged):
    world.run('run2', [.7, .71, .72])
    claim = sorted(claims.NEEDS_FUNCTION)[0]
    row = judged(claim)
    assert (row['verdict'], row['reason']) == ('not run', 'no function yet for a claim about a part')


def test_a_test_that_fails_is_no_verdict(world, judged):
    world.own['st_recur_add_gt_base'] = ClaimTest(left=lambda record: record['seconds']/0)
    for slug in ('recur_add', 'recur_baseline'): world.run(slug, [.7, .71, .72])
    row = judged('st_recur_add_gt_base')
    assert (row['verdict'], row['reason']) == ('not run', 'its test failed: ZeroDivisionError: float division by zero')
    world.own['st_recur_add_gt_base'] = ClaimTest(left=lambda record: record['metrics']['absent'])
    assert judged('st_recur_add_gt_base')['reason'] == 'no metric absent in the runs'


# What a claim test may say

def test_a_system_maps_metrics(world, judged):
    world.metrics['puzzle_accuracy'] = 'solved_share'
    world.run('recur_add', [.7, .71, .72], metric='solved_share')
    world.run('recur_baseline', [.5, .515, .52], metric='solved_share')
    assert judged('st_recur_add_gt_base')['verdict'] == 'holds'


def test_left_and_right_are_read_by_functions_of_their_own(world, judged):
    world.own['st_recur_add_gt_base'] = ClaimTest(tested='x against y', left=lambda r: r['metrics']['x'],
                                                  right=lambda r: r['metrics']['y'])
    world.run('recur_add', [0.] * 3, x=.7, y=0.)
    world.run('recur_baseline', [0.] * 3, x=.9, y=.4)
    row = judged('st_recur_add_gt_base')
    assert (row['tested'], row['n_left']) == ('x against y', 3) and row['effect'] == pytest.approx(.3)


def test_of_and_versus_take_the_place_of_both_sides(world, judged):
    world.own['st_recur_add_gt_base'] = ClaimTest(of='recur_gated', versus='recur_mem')
    world.run('recur_gated', [.7, .71, .72])
    world.run('recur_mem', [.5, .515, .52])
    row = judged('st_recur_add_gt_base')
    assert (row['verdict'], row['n_left']) == ('holds', 3) and row['effect'] == pytest.approx(.595/3)


def test_a_pair_is_put_to_zero_to_the_row_or_to_a_bar(world, judged):
    def gap(ours, theirs, *others): return ours['metrics']['puzzle_accuracy'] - theirs['metrics']['puzzle_accuracy']
    world.run('recur_add', [.001, .0011, .0012])  # below the plateau, which a pair does not have
    world.run('recur_baseline', [0., 0., 0.])
    for bar, verdict in ((None, 'holds'), (.0001, 'holds'), (.01, 'contradicted')):
        world.own['st_recur_add_gt_base'] = ClaimTest(pair=gap, bar=bar)
        row = judged('st_recur_add_gt_base')
        assert (row['verdict'], row['n_left'], row['n_right']) == (verdict, 3, 0)
    world.own['eq_flat_top'] = ClaimTest(versus='beta_0_21_fixed', pair=lambda a, b: .004 + a['seed']/10_000)
    for beta in (20, 21): world.run(f'beta_0_{beta}_fixed', [.9, .9, .9], metric='test_accuracy')
    row = judged('eq_flat_top')  # the row's bar is one point
    assert row['verdict'] == 'holds' and row['effect'] == pytest.approx(.0041 - .01)


def test_further_experiments_come_to_a_pair_with_the_same_seed(world, judged):
    seen = []
    def spread(*records):
        seen.append([(record['experiment'], record['seed']) for record in records])
        return 1. + records[0]['seed']/100
    world.own['st_recur_add_gt_base'] = ClaimTest(pair=spread, also=('recur_mem', 'recur_gated'))
    for slug, first in (('recur_add', 0), ('recur_baseline', 1), ('recur_mem', 0)):
        world.run(slug, [.1] * 4, first=first)
    row = judged('st_recur_add_gt_base')
    assert (row['verdict'], row['reason']) == ('not run', 'no runs of recur_gated at laptop')
    world.run('recur_gated', [.2] * 4)
    assert judged('st_recur_add_gt_base')['verdict'] == 'holds'
    names = ['recur_add', 'recur_baseline', 'recur_mem', 'recur_gated']
    assert seen == [[(name, seed) for name in names] for seed in (1, 2, 3)]


def test_runs_are_looked_at_as_a_set(world, judged):
    levels = []
    def extent(records, level):
        levels.append(level)
        values = [record['metrics']['puzzle_accuracy'] for record in records]
        return Interval(max(values) - min(values), .25, .5)
    world.own['st_seed_variance'] = ClaimTest(runs=extent, bar=.2)
    world.run('proj_add_rerun', [.2, .5, .4, .9])
    row = judged('st_seed_variance')
    assert (row['verdict'], row['n_left'], row['n_right']) == ('holds', 3, 0) and levels == [pytest.approx(.995)]
    assert row['effect'] == pytest.approx(.1) and row['low'] == pytest.approx(.05)


def test_a_check_needs_no_runs(world, tmp_path):
    world.own |= {'rl_fix_hash_primes': ClaimTest(tested='primes', check=lambda: True),
                  'rl_fix_gqa_check': ClaimTest(check=lambda: False)}
    found = claims.ledger(world.frame(tmp_path), ids={'rl_fix_hash_primes', 'rl_fix_gqa_check', 'rl_fix_mtp_params'})
    found = found.set_index('claim_id')
    assert [found.loc[c, 'verdict'] for c in world.own] == ['holds', 'contradicted']
    assert found.loc['rl_fix_hash_primes', 'tested'] == 'primes'
    assert found.loc['rl_fix_mtp_params', 'reason'] == 'no predicate yet'


# The claim tests of the systems

def faults(claim, test, known):
    "What a claim test says that its row does not let it say, or that nobody reads."
    relation, number = claim['relation'], claims.number_of(claim['right']) is not None
    other = bool(test.versus or claim['right'] and not number)
    alone = dict(left=test.left, right=test.right, pair=test.pair, runs=test.runs, of=test.of, versus=test.versus)
    for name in (test.of, test.versus, *test.also):
        if name and name not in known: yield f'unknown experiment {name}'
    if test.check:
        if any(alone.values()): yield 'a check that is not all'
        return
    if test.pair:
        if test.left or test.right or test.runs: yield 'a pair beside another measure'
        if relation not in (*COMPARED, *RATES): yield f'a pair for {relation}'
        if not (other or test.also): yield 'a pair of one experiment'
        try: inspect.signature(test.pair).bind(*range(2 + len(test.also)))
        except TypeError: yield 'a pair of another number of records'
    elif test.also: yield '`also` without a pair'
    if test.runs and (test.bar is None or relation not in '<>' or test.left): yield 'runs without a bar to be put to'
    if test.right and not other: yield '`right` of no experiment'
    if test.versus and number and not test.pair: yield '`versus` beside a number'
    if test.bar is not None and relation not in COMPARED: yield f'a bar for {relation}'
    if test.bar is not None and number and test.bar != claims.number_of(claim['right']):
        yield 'a bar beside that of the row'
    if test.bar is not None and other and not test.pair: yield 'a bar beside an experiment'
    if relation in RATES and not (test.left or test.pair or test.cannot or relation != 'holds'):
        yield 'nothing that is true or false'
    said = {'in most runs': RATES, 'no worse': ('>=',), 'no better': ('<=',)}
    for words, relations in said.items():
        if words in test.tested and relation not in relations: yield f'{words!r} for {relation}'
    if relation in RATES and test.left and test.tested and 'in most runs' not in test.tested:
        yield 'a rate that is not said'
    if 'on both sides' in test.tested and not other: yield 'both sides of one'
    if not (test.tested or test.cannot) and (test.left or test.right or test.pair or test.runs):
        yield 'a measure without words'


def row(relation='>', right='b'): return dict(relation=relation, right=right)


@pytest.mark.parametrize('claim, test', [
    (row(), ClaimTest(versus='gone')),
    (row(), ClaimTest(check=lambda: True, left=len)),
    (row(), ClaimTest(tested='x', pair=lambda a, b: 0, left=len)),
    (row('solves_none', ''), ClaimTest(tested='x', pair=lambda a, b: 0)),
    (row(right='0'), ClaimTest(tested='x', pair=lambda a, b: 0)),
    (row(), ClaimTest(tested='x', pair=lambda a, b, c: 0)),
    (row(), ClaimTest(tested='x', pair=lambda a, b: 0, also=('b',))),
    (row(), ClaimTest(also=('b',))),
    (row(), ClaimTest(tested='x', runs=lambda records, level: 0)),
    (row('~=', '0'), ClaimTest(tested='x', runs=lambda records, level: 0, bar=1.)),
    (row(right='0'), ClaimTest(tested='x', right=len)),
    (row(right='0'), ClaimTest(versus='b')),
    (row('holds', ''), ClaimTest(tested='x in most runs', left=len, bar=1.)),
    (row(right='0.2'), ClaimTest(tested='x', left=len, bar=.3)),
    (row(), ClaimTest(tested='x', left=len, bar=.3)),
    (row('holds', ''), ClaimTest(tested='x')),
    (row('>'), ClaimTest(tested='x: no worse by two points')),
    (row('<'), ClaimTest(tested='x: no better')),
    (row('>'), ClaimTest(tested='x in most runs')),
    (row('holds', ''), ClaimTest(tested='x', left=len)),
    (row(right='0'), ClaimTest(tested='x on both sides')),
    (row(), ClaimTest(left=len)),
])
def test_a_claim_test_at_fault_is_seen(claim, test): assert list(faults(claim, test, {'b'}))


@pytest.mark.parametrize('claim, test', [
    (row(), ClaimTest()),
    (row(), ClaimTest(tested='x', pair=lambda a, b, c: 0, also=('b',))),
    (row(right='0'), ClaimTest(tested='x', pair=lambda a, b: 0, versus='b')),
    (row(right='0.2'), ClaimTest(tested='x', runs=lambda records, level: 0, bar=.2)),
    (row('holds', ''), ClaimTest(tested='x, in most runs', left=len)),
    (row(), ClaimTest(cannot='no cause')),
])
def test_a_sound_claim_test_is_let_pass(claim, test): assert list(faults(claim, test, {'b'})) == []


def test_claim_tests_name_known_claims_and_experiments_and_suit_their_rows():
    rows = claims.claims_table().set_index('claim_id')
    known, checked = set(catalogue.experiments()), 0
    for system in catalogue.systems():
        of_system = rows[rows['log'].isin(system.logs)]
        assert set(system.claims) <= set(of_system.index), f'{system.name}: claims that its logs do not make'
        for claim_id, test in system.claims.items():
            assert list(faults(of_system.loc[claim_id], test, known)) == [], claim_id
            checked += 1
    assert checked > 50


def test_the_ledger_says_what_is_tested_unless_nothing_can_be():
    tests = {claim_id: test for system in catalogue.systems() for claim_id, test in system.claims.items()}
    for log in FINISHED:
        for claim in claims.claims_table(log).to_dict('records'):
            said = claims.tested(claim)
            assert said or tests[claim['claim_id']].cannot, claim['claim_id']
            assert '_' not in said, f'{claim["claim_id"]}: {said} is a name of code'


def test_what_is_judged_by_the_plain_metric_is_what_the_log_compared():
    "Where the log prints both sides, the difference of its main values is the margin, unless the claim is special."
    # the log compares peaks where the statement does not say so; prints several values of one thing;
    # states a number as such
    known = {'st_sam_closes_gap', 'st_sam_ceiling', 'st_sam_gain_shrinks', 'cg_accum_equals_big_batch'}
    rows = claims.claims_table()
    rows = rows[rows['relation'].isin(COMPARED) & rows['margin'].notna() & (rows['status'] != 'target')]
    tests = {claim_id: test for system in catalogue.systems() for claim_id, test in system.claims.items()}
    checked = 0
    for claim in rows.to_dict('records'):
        gap, test = claimtable._reported_gap(claim), tests.get(claim['claim_id'], ClaimTest())
        if math.isnan(gap) or claim['metric'] in (*claims.RATIOS, 'relative_loss_drop'): continue
        if claim['claim_id'] in claims.NEEDS_FUNCTION | known or test.left or test.pair or test.runs: continue
        assert claims.log_value(claim) == pytest.approx(gap, abs=2e-3), claim['claim_id']
        checked += 1
    assert checked > 40
