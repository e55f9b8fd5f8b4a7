"""Scale `log` against the settings that the logs' authors published: data/logs/published.csv, row by row."""
import json, re
import pandas as pd
import pytest
from reasonnb.lab.catalogue import experiments, resolve, root, sections

TABLE = pd.read_csv(root()/'data'/'logs'/'published.csv', keep_default_na=False)
COMPARED, REST = (TABLE[TABLE['compared'] == answer] for answer in ('yes', 'no'))
SOURCE = re.compile(r'(chenglou/sotaku|automenta/eqprop)@[0-9a-f]{7} [\w./-]+\.(py|sh|log|md)(:\d+|: [a-zA-Z -]+)')
# sections of the two logs that have a configuration, but no published script: plans, and lessons from curves
NO_SCRIPT = set('''separate_h_pred insight18_stable60k bs8192_alt1_accum eq_exc_slow eq_exc_late eq_exc_reinit
    eq_fail_low_beta eq_fail_high_beta eq_try2_scale eq_try3_lr eq_try4_layernorm eq_take4_gap94
    eq_day2_wide'''.split())


def settings(slug): # field -> value at scale log, as json has it
    return json.loads(json.dumps(resolve(slug, 'log').to_dict()))


def wrong(rows, have): # one line for each row that a config contradicts
    return [f'{row.slug}: {row.field} is {have[row.field]!r} at scale log, but {row.value} in {row.source}'
            for row in rows.itertuples() if have[row.field] != json.loads(row.value)]


@pytest.mark.parametrize('slug', COMPARED['slug'].unique())
def test_scale_log_is_what_the_authors_ran(slug):
    assert not wrong(COMPARED[COMPARED['slug'] == slug], settings(slug))


def test_a_wrong_row_is_named_with_its_source():
    rows, have = COMPARED[COMPARED['slug'] == 'baseline'], settings('baseline')
    for name, bad in dict(optimizer='adamw', muon_rate=.03, clip=1., phases=[[0., 0., 1.]]).items():
        line, = wrong(rows, have | {name: bad})
        assert line.startswith(f'baseline: {name} is {bad!r}') and 'chenglou/sotaku@7c13903 sudoku.py' in line


def test_what_no_field_can_say_is_counted_and_explained():
    assert (len(COMPARED), len(REST)) == (3345, 23)
    assert REST['note'].str.len().min() > 3
    for row in REST.itertuples():
        have = settings(row.slug)
        assert row.field not in have or have[row.field] != json.loads(row.value), f'{row.slug}: {row.field} can be said'


def test_each_row_has_one_place_and_each_script_its_section():
    assert not TABLE.duplicated(['slug', 'field']).any()
    assert set(TABLE['compared']) == {'yes', 'no'}
    assert not [source for source in TABLE['source'] if not SOURCE.fullmatch(source)]
    told = sections().query("log in ('sudoku_transformer', 'equilibrium')")['slug']
    known, listed = set(experiments()), set(TABLE['slug'])
    assert listed <= known
    assert known & set(told) - listed == NO_SCRIPT
    assert listed - set(told) == {'pos_row_col', 'pos_relative', 'pos_alibi', 'cosine_reverse'}
