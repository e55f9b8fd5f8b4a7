"""Sudoku runs: what a seed decides, that every configuration trains, and that a task with a memory survives a kill."""
import pytest
import torch
from reasonnb.core.config import UserError
from reasonnb.core.trainer import fit
from reasonnb.lab.catalogue import canonical, experiments, resolve, system_of
from reasonnb.sudoku.splits import Boards
from reasonnb.systems.looped.task import LoopedTask, build_task

SLUGS = [slug for slug in experiments() if system_of(slug).name == 'looped' and canonical(slug) == slug]


def tasks(): return [LoopedTask(resolve('baseline', 'smoke', seed=seed)) for seed in (0, 3)]


def test_seed_decides_the_initial_weights():
    a, b = tasks()
    assert not torch.equal(a.model.head.weight, b.model.head.weight)


def test_seed_decides_the_order_of_the_boards():
    a, b = tasks()
    assert not torch.equal(a.batch(7)['puzzles'], b.batch(7)['puzzles'])


@pytest.mark.parametrize('slug', SLUGS)
def test_every_configuration_trains(slug, tmp_path):
    config = resolve(slug, 'smoke', steps=2, eval_every=2, schedule='constant', warmup=0)
    record = fit(build_task(config), config, tmp_path)
    assert record['steps'] == 2 and record['metrics']['loss'] > 0 and 0 <= record['metrics']['puzzle_accuracy'] <= 1


def test_boards_that_stay_survive_a_kill(tmp_path):
    config = resolve('carry', 'smoke', steps=8, eval_every=2, schedule='constant', warmup=0)
    def die(step, terms):
        if step == 5: raise SystemExit
    whole = fit(build_task(config), config, tmp_path / 'whole')
    with pytest.raises(SystemExit): fit(build_task(config), config, tmp_path / 'killed', on_step=die)
    again = fit(build_task(config), config, tmp_path / 'killed')
    assert again['metrics'] == whole['metrics']
    assert [row['loss'] for row in again['curve']] == [row['loss'] for row in whole['curve']]


def test_a_transfer_set_without_new_grids_is_refused():
    config = resolve('kaggle_on_extreme', 'smoke', transfer='generated', transfer_puzzles=2, train_puzzles=0)
    with pytest.raises(UserError, match='every one of its grids'): Boards(config)
