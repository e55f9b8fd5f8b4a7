"""The sections of the energy log as runs: each trains, each claim can be put to the records it names."""
import math

import pytest

from reasonnb.core.claimtest import CannotShow, ClaimTest
from reasonnb.core.trainer import fit
from reasonnb.lab.catalogue import canonical, resolve, sections
from reasonnb.lab.claims import experiments_of, judged
from reasonnb.lab.claimtable import claims_table
from reasonnb.systems.energy.claims import CLAIMS, METRICS
from reasonnb.systems.energy.experiments import EXPERIMENTS, SYSTEM
from reasonnb.systems.energy.task import build_task

SLUGS = [experiment.slug for experiment in EXPERIMENTS if canonical(experiment.slug) == experiment.slug]
# five evaluations are enough for every kind of claim
SHORT = dict(steps=10, eval_every=2, validation_puzzles=8, test_puzzles=10, langevin_puzzles=3, control_puzzles=2)
pytestmark = pytest.mark.usefixtures('one_thread')


def test_every_section_that_can_be_run_is_an_experiment():
    told = sections('sudoku_energy')
    wanted = set(told['slug'][~told['kind'].isin(['lesson'])]) - {'kona_reference'}
    assert wanted | {'energy'} == {experiment.slug for experiment in EXPERIMENTS}


def test_laptop_configurations_are_the_trial():
    "Twice what the trial measured most: 3,000 updates of 64 boards at 2e-3, 4x4 boards of 5 to 9 clues."
    c = resolve('energy_run2', 'laptop')
    assert (c.steps, c.batch_size, c.lr, c.clues, c.warmup) == (3_000, 64, 2e-3, (5, 9), 600)
    last = resolve('energy_next_langevin', 'laptop')
    assert set(c.diff(last)) == {'unit_latent', 'noise_scale', 'constraint_weight', 'inference_energy'}
    assert set(resolve('energy_next_forward', 'laptop').diff(last)) == {'langevin_steps'}


def test_the_run_at_scale_log_is_the_log():
    one, two, three = (resolve(f'energy_run{n}', 'log') for n in (1, 2, 3))
    assert (one.latent, one.batch_size, one.lr, one.warmup) == ('noise', 512, 3e-4, 780)
    assert (two.latent, two.noise_scale, two.steps * two.batch_size) == ('projected', 1., 20 * 8_000_000)
    assert (three.batch_size, three.lr, three.steps * three.batch_size) == (2_048, 6e-4, 20 * 8_000_000)
    assert (two.decode_weight, two.variance_weight, two.covariance_weight, two.split) == (1., 1., .01, 'puzzle')


@pytest.fixture(scope='module')
def records(tmp_path_factory):
    "A short run of each configuration."
    found = {}
    for slug in SLUGS:
        config = resolve(slug, 'smoke', **SHORT)
        found[slug] = fit(build_task(config), config, tmp_path_factory.mktemp(slug))
    return found


def test_every_configuration_trains(records):
    for slug, record in records.items():
        assert record['steps'] == SHORT['steps'] and math.isfinite(record['metrics']['loss']), slug


@pytest.mark.parametrize('claim', claims_table('sudoku_energy').to_dict('records'), ids=lambda claim: claim['claim_id'])
def test_a_claim_can_be_put_to_the_records_it_names(claim, records):
    test = CLAIMS[claim['claim_id']]
    if test.check:
        assert test.check() is True
        return
    names = [canonical(name) if name else '' for name in experiments_of(claim, test)]
    assert len(set(names)) == len(names), 'both sides are one run'
    rows = [[records[name] if name else None for name in names]] * 3
    try: found = judged(claim, test or ClaimTest(), rows, METRICS.get(claim['metric'], claim['metric']))
    except CannotShow: return
    assert found.verdict


def test_the_job_is_there():
    assert SYSTEM.job == 'jobs/energy.ipynb' and SYSTEM.build.__name__ == 'build_task'
