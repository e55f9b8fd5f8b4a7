"Measures of the log's claims about a moment or a bucket, on records whose answer is plain."
import pytest

from reasonnb.core.claimtest import CannotShow
from reasonnb.systems.looped.claims import CLAIMS
from reasonnb.systems.looped.measures import (
    at_share, best_iteration, change, loss_explodes, needs_guess, smallest_drop, smallest_lead, take_off)


def run(*curve, steps=100, losses=(1.,), **metrics):
    rows = [dict(kind='eval', step=step, puzzle_accuracy=value) for step, value in curve]
    rows += [dict(kind='train', step=step, loss=loss) for step, loss in enumerate(losses, 1)]
    return dict(curve=rows, metrics=metrics, config=dict(steps=steps, iterations=6, answer_iterations=16, box=[2, 3]))


def test_a_share_is_one_of_the_planned_steps():
    "This run stopped at half of them."
    stopped = run((0, 0.), (25, .2), (50, .6))
    assert [at_share(share)(stopped) for share in (.25, .5, 1.)] == [.2, .6, .6]


def test_the_smallest_lead_is_the_smallest():
    ahead, behind = run((0, .0), (14, .2), (100, .8)), run((0, .0), (14, .1), (100, .75))
    assert smallest_lead(ahead, behind) == pytest.approx(.05)


def test_a_decline_is_none_where_the_run_is_still_rising():
    assert change(.8, rising=.02)(run((80, .5), (100, .45))) == pytest.approx(-.05)
    with pytest.raises(CannotShow, match='still rising'): change(.8, rising=.02)(run((80, .5), (100, .6)))


def test_a_network_takes_off_between_two_evaluations():
    assert take_off(run((0, 0.), (50, .05), (100, .15))) == pytest.approx(.75)
    assert take_off(run((0, 0.), (100, .09))) == 1


SIZES = {'n_test/rating_0': 100, 'n_test/rating_1-2': 30, 'n_test/rating_3-10': 10, 'n_test/class_00': 70}
SHARES = {'puzzle_accuracy/rating_0': .9, 'puzzle_accuracy/rating_1-2': .5, 'puzzle_accuracy/rating_3-10': .1}


def test_buckets_are_pooled_by_their_boards():
    assert needs_guess(run(**SIZES, **SHARES)) == pytest.approx(16/40)


def test_a_drop_is_one_between_neighbours_with_enough_boards():
    assert smallest_drop()(run(**SIZES, **SHARES)) == pytest.approx(.4)


def test_a_loss_explodes_at_the_end():
    calm, burst, recovered = run(losses=(2., 1.)), run(losses=(2., 90.)), run(losses=(90., 1.))
    assert [loss_explodes(r) for r in (calm, burst, recovered, run(diverged=1.))] == [False, True, False, True]


def test_the_best_iteration_is_a_share_of_those_that_were_made():
    assert best_iteration(run(best_iteration=4)) == .25


def test_the_gain_in_a_domain_is_read_on_the_same_boards():
    "The left side's own test set is the right side's second one."
    sizes = {f'n_test/{prefix}rating_{name}': 50 for prefix in ('', 'transfer_') for name in ('0', '3-10')}
    shares = {'rating_0': .9, 'rating_3-10': .6, 'transfer_rating_0': .8, 'transfer_rating_3-10': .2}
    record = run(**sizes, **{f'puzzle_accuracy/{name}': share for name, share in shares.items()})
    assert CLAIMS['st_domain_hardest'].pair(record, record) == pytest.approx(.4 - .1)
