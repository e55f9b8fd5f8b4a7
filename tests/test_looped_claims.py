"Claims of the log about a moment or a bucket, on records whose answer is plain."
import pytest

from reasonnb.systems.looped.claims import (CLAIMS, at_share, early_best, late_gain_within_noise, loss_explodes,
                                            moments, rated, smallest_lead)


def run(*curve, steps=100, losses=(1.,), **metrics):
    rows = [dict(kind='eval', step=step, puzzle_accuracy=value) for step, value in curve]
    rows += [dict(kind='train', step=step, loss=loss) for step, loss in enumerate(losses, 1)]
    return dict(curve=rows, metrics=metrics, config=dict(steps=steps, validation_puzzles=500, iterations=6, box=[2, 3]))


def test_a_share_is_one_of_the_planned_steps():
    "This run stopped at half of them."
    stopped = run((0, 0.), (25, .2), (50, .6))
    assert [at_share(stopped, share) for share in (.25, .5, 1.)] == [.2, .6, .6]
    whole = run((0, 0.), (25, .1), (100, .9))
    assert moments(1., .25)([whole], [stopped]) == ([.9], [.2])


def test_the_smallest_lead_is_the_smallest():
    ahead, behind = run((0, .0), (14, .2), (100, .8)), run((0, .0), (14, .1), (100, .75))
    assert smallest_lead([ahead], [behind])[0] == pytest.approx([.05])


@pytest.mark.parametrize('last, still', [(.5, True), (.52, True), (.8, False), (.3, True)])
def test_a_late_gain_within_the_noise(last, still):
    assert late_gain_within_noise([run((60, .5), (100, last))], []) == [still]


def test_buckets_are_pooled_by_their_boards():
    sizes = {'n_test/rating_0': 100, 'n_test/rating_1-2': 30, 'n_test/rating_3-10': 10, 'n_test/class_00': 70}
    shares = {'puzzle_accuracy/rating_0': .9, 'puzzle_accuracy/rating_1-2': .5, 'puzzle_accuracy/rating_3-10': .1}
    assert rated(run(**sizes, **shares)) == pytest.approx(((90 + 15 + 1)/140, 140))
    assert rated(run(**sizes, **shares), hard=True) == pytest.approx((16/40, 40))


def test_a_loss_explodes_at_the_end():
    calm, burst, recovered = run(losses=(2., 1.)), run(losses=(2., 90.)), run(losses=(90., 1.))
    assert loss_explodes([calm, burst, recovered, run(diverged=1.)], []) == [False, True, False, True]


def test_the_best_iteration_is_early_in_the_first_half():
    assert early_best([run(best_iteration=n) for n in (1, 3, 4, 6)], []) == [True, True, False, False]


def test_the_gap_between_two_test_sets_is_that_of_the_hardest_boards_first():
    sizes = {f'n_test/{prefix}rating_{name}': 50 for prefix in ('', 'transfer_') for name in ('0', '3-10')}
    shares = {'rating_0': .9, 'rating_3-10': .6, 'transfer_rating_0': .8, 'transfer_rating_3-10': .2}
    record = run(**sizes, **{f'puzzle_accuracy/{name}': share for name, share in shares.items()})
    hardest, easiest = CLAIMS['st_domain_hardest']([record], [record])
    assert (hardest, easiest) == (pytest.approx([.4]), pytest.approx([.1]))
