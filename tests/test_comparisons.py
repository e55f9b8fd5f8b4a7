"Comparisons on a few runs whose numbers can be worked out in the head."
import math
from pathlib import Path

import pytest

from reasonnb.core.statistics import Interval, interval
from reasonnb.lab import catalogue, figures
from reasonnb.lab.comparisons import (
    Shares, Study, at_step, best_minus_last, curves_of, falls, fallen, findings, late, side,
)
from reasonnb.lab.results import as_frame


def run(slug, seed, value=.5, curve=(), steps=100, **more):
    rows = [dict(step=step, kind='eval', puzzle_accuracy=value) for step, value in curve]
    return dict(experiment=slug, scale='laptop', seed=seed, finished='', config=dict(steps=steps), curve=rows,
                metrics=dict(puzzle_accuracy=value) | more, seconds=1.)


@pytest.fixture
def study(monkeypatch):
    "A study of the runs given, all of them as catalogued."
    monkeypatch.setattr(catalogue, 'canonical', lambda slug, scale: slug)
    def made(*records, kind=Study):
        frame = as_frame([(Path(f'{number}/record.json'), record) for number, record in enumerate(records)])
        return kind(frame.assign(changes='', canonical=frame['experiment']))
    return made


def test_pairs_have_one_seed(study):
    "One side has the seeds 0 to 3, the other 1 to 4; a seed moves both sides by more than they differ."
    level = [.9, .1, .5, .3, .7]
    ours = [run('ours', seed, level[seed] + .1 + seed/1000) for seed in range(4)]
    theirs = [run('theirs', seed, level[seed]) for seed in range(1, 5)]
    found = study(*ours, *reversed(theirs)).gap('ours', 'theirs')
    assert found == pytest.approx((.102, .102 - .0024841, .102 + .0024841), abs=1e-6)


def test_the_last_part_is_that_of_the_planned_steps(study):
    "A run that stopped early has nothing of the last quarter but what it reached of it."
    curve = [(0, 0.), (40, .1), (70, .2), (80, .6)]
    assert late(study(run('one', 0, curve=curve)), 'one', 'puzzle_accuracy', 'eval') == [.6]
    assert late(study(run('one', 0, curve=curve)), 'one', 'puzzle_accuracy', 'eval', share=.3) == pytest.approx([.4])


def test_the_best_is_compared_with_the_last(study):
    record = run('one', 0, curve=[(0, .1), (50, .9), (100, .6)]) | dict(best=dict(metric='puzzle_accuracy', value=.9))
    assert best_minus_last(study(record), 'one') == pytest.approx([.3])


def test_curves_are_read_between_their_steps(study):
    two = study(run('one', 0, curve=[(0, 0.), (100, 1.)]), run('one', 1, curve=[(0, 1.), (50, 0.), (100, 0.)]))
    assert at_step(two, 'one', 25) == pytest.approx([.25, .5])
    steps, values = curves_of(two, 'one')
    assert steps.tolist() == [0, 50, 100] and values.tolist() == [[0, .5, 1], [1, 0, 0]]


def test_a_mean_curve_ends_with_the_shortest_of_its_runs(study):
    long, short = [(0, 0.), (50, .4), (100, .9)], [(0, 0.), (50, .2)]
    records = study(run('one', 0, curve=long), run('one', 1, curve=short)).records
    line = figures.curves(records, ['one'], 'both').axes[0].lines[0]
    assert line.get_xdata().tolist() == [0, 50] and line.get_ydata().tolist() == pytest.approx([0, .3])


def test_a_fall_is_measured_from_the_best_of_the_whole_run():
    def found(path, **more):
        return falls(dict(curve=[dict(kind='eval', step=i, accuracy=x) for i, x in enumerate(path)]), **more)
    assert found([.5, .9, .8, .8, .91, .86], skip=3) == (3, 2)  # .9 was before what counts; .86 is 5 points down
    assert found([.5, .9, .8, .8, .91, .87], skip=3) == (3, 1)
    assert found([.5, .9], skip=5) == (0, 0)


def test_falls_are_counted_from_the_bar_on(study):
    runs = study(*[run('one', seed, collapse=depth) for seed, depth in enumerate((0., 5., 12.))])
    assert fallen(runs, 'one') == (2, 3, 12.)
    assert fallen(runs, 'one', bar=20) == (0, 3, 12.) and math.isnan(fallen(runs, 'nobody')[2])


@pytest.mark.parametrize('gap, said', [
    ((.1, .05, .2), 'better'), ((-.1, -.2, -.05), 'worse'), ((.01, -.1, .2), 'undecided'),
    ((.1, math.nan, math.nan), 'undecided')])
def test_the_side_that_an_interval_takes(gap, said): assert side(Interval(*gap)) == said


def test_from_five_seeds_on_a_difference_has_the_interval_of_the_ledger(study):
    gaps = [.01, .02, .03, .05, .01, .9]  # the sixth seed waits for the analysis at eight
    records = [run(slug, seed, gap*(slug == 'ours')) for seed, gap in enumerate(gaps) for slug in ('ours', 'theirs')]
    assert study(*records).gap('ours', 'theirs') == pytest.approx(interval(gaps[:5], .9855))
    assert study(*records[:6]).gap('ours', 'theirs') == pytest.approx(interval(gaps[:3], .95))


def test_a_run_that_lacks_the_metric_leaves_its_pair_out(study):
    broken = run('theirs', 0, .5)
    broken['metrics'] = dict(diverged=1)
    ours, theirs = [run('ours', seed, .5 + seed/10) for seed in range(3)], [run('theirs', s, .4 + s/10) for s in (1, 2)]
    pairs = study(*ours, broken, *theirs).shared('ours', 'theirs')
    assert [a - b for a, b in pairs] == pytest.approx([.1, .1])


def test_findings_say_which_side_solves_more(study):
    runs = study(*(run(name, seed, value + seed/1000) for name, value in (('high', .8), ('low', .2), ('same', .2))
                   for seed in range(3)), kind=Shares)
    lines = findings(runs, ('high', 'low'), ('low', 'high'), ('low', 'same'), metrics={'test': ''}).splitlines()
    assert [line.split('**')[1] for line in lines] == ['solves more than', 'solves fewer than', 'cannot be told from']
