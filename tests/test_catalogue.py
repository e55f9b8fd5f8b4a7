"""The real catalogue against the logs as tables."""
import pytest
from reasonnb.core.config import UserError
from reasonnb.lab.catalogue import (
    RUN_LIKE,
    canonical,
    chain,
    describe,
    experiments,
    log_of,
    missing,
    resolve,
    sections,
    system_of,
)


def test_inheritance_is_that_of_the_log():
    run_like = sections().query('kind in @RUN_LIKE', local_dict={'RUN_LIKE': RUN_LIKE})
    base = {slug: base for slug, base in zip(run_like['slug'], run_like['base']) if not base or base in experiments()}
    wrong = {slug: (experiment.base, base[slug])
             for slug, (_, experiment) in experiments().items()
             if slug in base and experiment.base != base[slug]}
    assert not wrong, f'slug: (base in the code, base in sections.csv) {wrong}'


@pytest.mark.parametrize('slug', experiments())
def test_every_experiment_resolves_at_every_scale(slug):
    for scale in system_of(slug).scales:
        config = resolve(slug, scale)
        assert resolve(slug, scale, seed=7).diff(config) == {'seed': (7, config.seed)}
        assert resolve(canonical(slug, scale), scale) == config
    assert chain(slug)[-1] == slug and log_of(slug) in system_of(slug).logs
    assert describe(slug)['config']['steps'][0] == resolve(slug).steps


def test_what_an_experiment_says_of_a_scale_goes_before_what_it_says_of_all():
    twice = []
    for slug, (system, experiment) in experiments().items():
        for scale, fields in experiment.at.items():
            config = resolve(slug, scale)
            twice += fields.keys() & experiment.change.keys()
            assert config.diff(config.replace(**fields)) == {}, f'{slug} at {scale}'
    assert twice  # else this shows nothing


def test_fields_of_experiments_exist():
    for system, experiment in experiments().values():
        for scale in experiment.at:
            assert scale in system.scales, f'{experiment.slug} says something about an unknown scale {scale}'


def test_what_remains_is_counted():
    run_like = sections().query('kind in @RUN_LIKE', local_dict={'RUN_LIKE': RUN_LIKE})
    left = missing()
    assert set(left) == set(run_like['slug']) - set(experiments())
    for slug in left[:1]:
        with pytest.raises(UserError, match='no configuration yet'): system_of(slug)
    counts = f'{len(left)} of {len(run_like)}'
    if left: pytest.xfail(f'{counts} sections that trained something have no configuration yet: {" ".join(left)}')
