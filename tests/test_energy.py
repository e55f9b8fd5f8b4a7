"""The energy log's network: where the answer enters, where it must not, and that each bug can be put back."""
import inspect
import math

import numpy as np
import pytest
import torch

from reasonnb.core.config import UserError
from reasonnb.core.schedules import lr_at
from reasonnb.core.trainer import fit
from reasonnb.sudoku.board import BoardShape, agrees, is_solved
from reasonnb.systems.energy import langevin, measures
from reasonnb.systems.energy.boards import EnergyBoards, add_clues
from reasonnb.systems.energy.config import EnergyConfig
from reasonnb.systems.energy.langevin import inference_energy, solve
from reasonnb.systems.energy.latent_losses import (constraint_penalty, decode_loss, decode_targets, latent_terms,
                                                   training_latent, vicreg)
from reasonnb.systems.energy.latent_network import build_model, trained_parameters
from reasonnb.systems.energy.scales import SCALES
from reasonnb.systems.energy.task import EnergyTask

BOX = BoardShape(2, 2)
SMOKE = EnergyConfig(**SCALES['smoke'])
pytestmark = pytest.mark.usefixtures('one_thread')


def boards(n=6, **changes):
    "Puzzles and solutions of the smoke scale."
    batch = EnergyBoards(SMOKE.replace(batch_size=n, **changes)).batch(0)
    return batch['puzzles'].long(), batch['solutions'].long()


@pytest.fixture(scope='module')
def task():
    "A task whose z matters: little noise, a loud z encoder, a long way per step."
    torch.manual_seed(0)
    found = EnergyTask(SMOKE.replace(noise_scale=.1, chains=4, step_size=.3, inference_energy='self_consistent'))
    with torch.no_grad(): found.model.z_encoder.weight.mul_(10)
    with torch.no_grad(): found.model.decoder.spread.weight[:, SMOKE.d_model:].mul_(4)
    found.model.eval()
    return found


def with_solutions(task, solutions):
    "The same task, told other solutions of the test boards; returns those it had."
    side = task.sides['test']
    before, side.solutions = np.array(side.solutions), solutions
    return before


@pytest.mark.parametrize('kind', langevin.ENERGIES)
def test_the_gradient_in_z_is_the_slope_of_the_energy(kind):
    torch.manual_seed(0)
    model, (puzzles, _) = build_model(SMOKE).double().eval(), boards()
    context, z = model.encode(puzzles).detach(), torch.randn(6, SMOKE.d_latent).double()
    with torch.no_grad(): model.decoder.spread.weight.mul_(5)  # so that probabilities move
    found = langevin._step(model, context, z, puzzles, kind=kind, weight=.7)[0]
    def energy(z):
        with torch.no_grad(): learned, rules, _ = inference_energy(model, context, z, puzzles, kind)
        return learned + .7 * rules
    for i in range(SMOKE.d_latent):
        nudge = torch.zeros_like(z)
        nudge[:, i] = 1e-6
        slope = (energy(z + nudge) - energy(z - nudge)) / 2e-6
        assert torch.allclose(found[:, i], slope, rtol=1e-5, atol=1e-6)
    assert found.abs().max() > 1e-3


def test_a_step_goes_down_the_gradient_of_both_terms():
    model, (puzzles, _) = build_model(SMOKE), boards(3)
    c = SMOKE.replace(chains=2, langevin_steps=1, step_size=.1, langevin_noise=0., rule_weight=2.)
    found = solve(model, puzzles, c, keep=1)
    start, end = found.path['latents'].flatten(1, 2)
    context = model.encode(puzzles).repeat_interleave(2, 0).detach()
    gradient = langevin._step(model.eval(), context, start, puzzles.repeat_interleave(2, 0),
                              kind='zero_target', weight=2.)[0]
    assert torch.allclose(end, start - .1 * gradient, atol=1e-6)
    assert found.rule_weight == 6  # the weight triples on the way


def test_no_step_is_a_forward_pass_from_the_prior():
    model, (puzzles, _) = build_model(SMOKE).eval(), boards(4)
    c = SMOKE.replace(langevin_steps=0, chains=1)
    found, logits = solve(model, puzzles, c, seed=3), measures.honest_answers(model, puzzles, c, seed=3)['prior']
    assert torch.equal(found.answers[:, 0], logits.argmax(-1) + 1) and found.steps == (0,)
    assert 'langevin_cell_accuracy@0' in EnergyTask(c.replace(langevin_puzzles=4)).test()


def test_noise_ends_before_the_chain_does():
    model, (puzzles, _) = build_model(SMOKE), boards(3)
    c = SMOKE.replace(langevin_steps=8, step_size=0., langevin_noise=1., quiet_share=.25)
    moves = solve(model, puzzles, c, keep=1).path['latents'].diff(dim=0).abs().amax((1, 2, 3))
    assert (moves > 0).tolist() == [True] * 6 + [False] * 2
    sizes = [solve(model, puzzles, c.replace(quiet_share=0.), keep=1).path['latents'].diff(dim=0).std(correction=0)
             for c in (c, c.replace(langevin_noise=2.))]
    assert sizes[1] / sizes[0] == pytest.approx(2, rel=1e-4)


def test_the_same_seed_gives_the_same_chains_and_any_batch_the_same_shape():
    model, (puzzles, _) = build_model(SMOKE), boards(5)
    one, other = (solve(model, puzzles, SMOKE, seed=seed) for seed in (0, 1))
    assert torch.equal(one.latents, solve(model, puzzles, SMOKE).latents)
    assert not torch.equal(one.latents, other.latents)
    parts = solve(model, puzzles, SMOKE, batch_size=2)
    assert all(parts.path[name].shape == one.path[name].shape for name in one.path)
    assert not model.training or build_model(SMOKE).training


def test_the_solver_has_no_door_for_a_solution():
    for function in (solve, inference_energy, langevin.Chains.choose, measures.honest_answers, EnergyTask.chains):
        assert not [name for name in inspect.signature(function).parameters if 'solution' in name or 'target' in name]
    source = inspect.getsource(langevin)
    assert 'training_latent' not in source and '.latent(' not in source


def test_only_what_is_called_oracle_sees_the_solution(task):
    "Solutions of other boards: every oracle's answer changes, and no other one."
    honest, shuffled = task.answers(n=40), None
    own = with_solutions(task, np.roll(np.asarray(task.sides['test'].solutions), 1, axis=0))
    try: shuffled = task.answers(n=40)
    finally: with_solutions(task, own)
    changed = {name for name in honest if not torch.equal(honest[name], shuffled[name])}
    assert changed == {name for name in honest if name.startswith('oracle_')} and len(changed) == 2
    assert len(honest) == 8


def test_numbers_that_need_no_solution_do_not_change_with_it(task):
    before = task.test()
    own = with_solutions(task, np.roll(np.asarray(task.sides['test'].solutions), 1, axis=0))
    try: after = task.test()
    finally: with_solutions(task, own)
    free = [name for name in before if 'constraint_satisfaction' in name or name.startswith('langevin_')
            and any(f'{part}@' in name for part in ('z_norm', 'energy', 'rules', 'grad_norm'))]
    assert len(free) > 20 and all(before[name] == after[name] for name in free)
    counted = [name for name in before if name.startswith('oracle_') and name.endswith('cell_accuracy')]
    assert counted and all(before[name] != after[name] for name in counted)


def test_the_leak_is_real():
    "Four boards without a single clue: with the solution in z most cells are right, without it what can be guessed."
    c = SMOKE.replace(noise_scale=.1)
    torch.manual_seed(1)
    model, solutions = build_model(c.replace(seed=1)), boards(4)[1]
    with torch.no_grad(): model.z_encoder.weight.mul_(10)
    with torch.no_grad(): model.target.input.weight.mul_(5)  # vectors of solutions that differ from the start
    puzzles, optimizer = torch.zeros_like(solutions), torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        latent_terms(model, puzzles, solutions, c)['loss'].backward()
        optimizer.step()
    found = measures.forward_metrics(model.eval(), puzzles, solutions, c)
    assert found['oracle_cell_accuracy'] > found['cell_accuracy'] + .2


def test_one_batch_can_be_learned_by_heart_from_its_clues():
    torch.manual_seed(0)
    c = SMOKE.replace(latent='noise', d_model=32)
    model, (puzzles, solutions) = build_model(c), boards(8)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(250):
        optimizer.zero_grad()
        latent_terms(model, puzzles, solutions, c)['loss'].backward()
        optimizer.step()
    found = measures.forward_metrics(model.eval(), puzzles, solutions, c)
    assert found['cell_accuracy_mean_z'] > .95 and found['cell_accuracy'] > .9


def average_by_hand(contexts, start, c):
    "Target weights after all updates, from the context encoder's weights after each."
    target = {name: value.clone() for name, value in start.items()}
    for step, context in enumerate(contexts):
        momentum = c.target_momentum + (1 - c.target_momentum) * step / c.steps
        for name in target:
            if not name.startswith('input.'): target[name] = momentum * target[name] + (1 - momentum) * context[name]
    return target


def weights(encoder): return {name: p.detach().clone() for name, p in encoder.named_parameters()}


def test_the_target_is_the_average_of_the_context_once_an_update(tmp_path):
    "Whatever is measured or saved on the way, and whether the run was interrupted."
    c, contexts = SMOKE.replace(steps=9, eval_every=4, checkpoint_every=3, target_momentum=.5), []
    task = EnergyTask(c)
    start = weights(task.model.target)
    fit(task, c, tmp_path/'whole', on_step=lambda step, terms: contexts.append(weights(task.model.context)))
    wanted = average_by_hand(contexts, start, c)
    found = weights(task.model.target)
    assert len(contexts) == 9 and all(torch.allclose(found[name], wanted[name], atol=1e-5) for name in wanted)
    assert torch.equal(found['input.weight'], start['input.weight'])  # the authors' defect

    class Killed(Exception): pass
    def kill(step, terms):
        if step == 8: raise Killed
    with pytest.raises(Killed): fit(EnergyTask(c), c, tmp_path/'killed', on_step=kill)  # last checkpoint: update 6
    again = EnergyTask(c)
    fit(again, c, tmp_path/'killed')
    assert all(torch.equal(p, found[name]) for name, p in weights(again.model.target).items())


def test_an_averaged_input_layer_follows_too():
    model = build_model(SMOKE.replace(target_input='averaged'))
    model.move_target(0.)
    assert torch.equal(model.target.input.weight, model.context.input.weight[:, 1:])
    assert torch.equal(model.target.input.bias, model.context.input.bias)


def test_the_target_has_no_gradient():
    model, (puzzles, solutions) = build_model(SMOKE), boards()
    latent_terms(model, puzzles, solutions, SMOKE)['loss'].backward()
    assert all(p.grad is None for p in model.target.parameters())
    assert all(p.grad is not None for name, p in model.named_parameters() if not name.startswith('target'))


def test_bug_1_scrambles_what_is_called_right():
    _, solutions = boards(50)
    assert torch.equal(decode_targets(solutions, BOX), solutions - 1)
    scrambled = decode_targets(solutions, BOX, 'digit_first') + 1
    grid = solutions.view(-1, 4, 4)
    for board, digit, row in ((0, 1, 0), (7, 3, 2), (20, 4, 1)):  # row `digit - 1` says where the digit stands
        assert scrambled[board].view(4, 4)[digit - 1, row] - 1 == (grid[board, row] == digit).nonzero().item()
    assert .15 < (scrambled == solutions).double().mean() < .5


def test_bug_1_is_seen_by_its_metric():
    found = [EnergyTask(SMOKE.replace(layout=layout)).test()['target_match']
             for layout in ('digit_last', 'digit_first')]
    assert found[0] == 1 > .6 > found[1]


def test_bug_2_divides_the_loss_by_the_cells_that_were_given():
    model, (puzzles, solutions) = build_model(SMOKE).eval(), boards(20)
    terms = {kind: latent_terms(model, puzzles, solutions, SMOKE.replace(decode_cells=kind, noise_scale=0.))
             for kind in ('blanks', 'all')}
    blanks, everything = (terms['all'][name] for name in ('decode_blanks', 'decode_all'))
    assert float(everything / blanks) == pytest.approx(float((puzzles == 0).double().mean()), rel=1e-5)
    losses = [terms[kind]['loss'].item() for kind in ('blanks', 'all')]
    assert losses[0] - losses[1] == pytest.approx(float(blanks - everything), rel=1e-3)


def test_a_wrong_clue_is_never_answered():
    puzzles, solutions = boards(3)
    logits = build_model(SMOKE).eval().decoder(torch.zeros(3, 16), torch.zeros(3, 8), puzzles)
    assert torch.equal((logits.argmax(-1) + 1)[puzzles > 0], puzzles[puzzles > 0])
    logits = build_model(SMOKE).eval().decoder(torch.zeros(3, 16), torch.zeros(3, 8), solutions)
    assert decode_loss(logits, solutions - 1, solutions)[1] == 0  # and costs nothing


@pytest.mark.parametrize('on, spread', [('context', True), ('prediction', False)])
def test_bug_3_leaves_the_context_encoder_alone(on, spread):
    "VICReg alone, on a predictor that ignores the context: only the repaired version moves the encoder."
    c = SMOKE.replace(vicreg_on=on, decode_weight=0., variance_weight=1., covariance_weight=0.)
    model, (puzzles, solutions) = build_model(c), boards(20)
    with torch.no_grad(): model.predictor.first.weight[:, :c.d_model] = 0
    latent_terms(model, puzzles, solutions, c)['loss'].backward()
    moved = sum(p.grad.abs().max() for p in model.context.parameters() if p.grad is not None)
    assert (moved > 1e-6) == spread


def test_vicreg_wants_deviation_one_and_no_covariance():
    x = torch.randn(5_000, 4)
    assert vicreg(3 * x)[0] == 0 and vicreg(.5 * x)[0] == pytest.approx(.5, abs=.02)
    assert vicreg(x)[1] < .01 < vicreg(x @ torch.ones(4, 4))[1]


def test_bug_4_a_warm_up_takes_at_most_a_fifth():
    assert [EnergyConfig(steps=steps).warmup for steps in (880, 10_000, 50_000)] == [176, 2_000, 2_000]
    assert EnergyConfig(steps=880).replace(steps=880) == EnergyConfig(steps=880)
    with pytest.raises(UserError, match='do not fit'): EnergyConfig(steps=880, warmup_cap=False)
    repaired, broken = (EnergyConfig(steps=880, warmup=n, warmup_cap=False, schedule='constant') for n in (176, 880))
    assert lr_at(439, repaired) == pytest.approx(3e-4) and lr_at(439, broken) == pytest.approx(1.5e-4)


def test_bug_6_takes_z_out_of_the_solution():
    model, (puzzles, solutions) = build_model(SMOKE), boards(6)
    target = model.encode_solution(model.one_hot(solutions))
    def z(target, latent, **changes):
        c = SMOKE.replace(latent=latent, **changes)
        return training_latent(model, target, c, generator=torch.Generator().manual_seed(0))
    assert torch.equal(z(target, 'noise'), z(target + 1, 'noise'))
    assert not torch.equal(z(target, 'projected'), z(target + 1, 'projected'))
    assert torch.allclose(z(target, 'projected', noise_scale=0.), model.latent(target))
    latent_terms(model, puzzles, solutions, SMOKE.replace(latent='noise'))['loss'].backward()
    assert model.z_encoder.weight.grad is None


def test_change_1_gives_z_length_one():
    model = build_model(SMOKE.replace(unit_latent=True))
    z = model.latent(torch.randn(5, SMOKE.d_model) * 30)
    assert torch.allclose(z.norm(dim=1), torch.ones(5))


def test_change_2_is_the_rule_penalty_in_the_loss():
    model, (puzzles, solutions) = build_model(SMOKE).eval(), boards()
    without, with_rules = (latent_terms(model, puzzles, solutions, SMOKE.replace(noise_scale=0., constraint_weight=w))
                           for w in (0., .1))
    assert (with_rules['loss'] - without['loss']).item() == pytest.approx(.1 * float(without['rules']), rel=1e-3)


@pytest.mark.parametrize('shape', [(2, 2), (2, 3)])
def test_the_penalty_is_zero_on_solved_boards_and_on_no_broken_one(shape):
    box = BoardShape(*shape)
    solutions = torch.as_tensor(np.array(EnergyBoards(SMOKE.replace(box=shape, clues=(0, 0))).solutions[:20])).long()
    def soft(grids): return torch.nn.functional.one_hot(grids - 1, box.N).float()
    assert constraint_penalty(soft(solutions), box).abs().max() == 0
    broken = solutions.clone()
    broken[:, 0] = broken[:, 0] % box.N + 1
    assert (constraint_penalty(soft(broken), box) == 6).all()


def test_clues_are_added_up_to_the_number_asked_for():
    puzzles, solutions = boards(300, clues=(0, 0))
    more = add_clues(puzzles, solutions, 5, 9, torch.Generator().manual_seed(0))
    counts = (more > 0).sum(1)
    assert set(counts.tolist()) == set(range(5, 10)) and agrees(more, solutions).all()
    assert torch.equal(more[puzzles > 0], puzzles[puzzles > 0])
    kept = add_clues(puzzles, solutions, 0, 1, torch.Generator().manual_seed(0))
    assert torch.equal(kept, puzzles) and is_solved(solutions, BOX).all()


def test_held_out_boards_do_not_depend_on_the_seed():
    one, other = (EnergyTask(SMOKE.replace(seed=seed)) for seed in (0, 1))
    assert torch.equal(one.boards('test')[0], other.boards('test')[0])
    assert not torch.equal(one.batch(0)['puzzles'], other.batch(0)['puzzles'])
    train = {bytes(row) for row in np.asarray(one.puzzles)}
    test = {bytes(row) for row in np.asarray(EnergyBoards(SMOKE.replace(clues=(0, 0))).sides['test'].puzzles)}
    assert not train & test


def test_sizes_of_the_log():
    run_5 = EnergyConfig(d_model=512, layers=8, d_ff=2048, d_latent=256, d_predictor=1024, decoder_layers=4,
                         decoder_heads=8, d_cell=128)
    assert [trained_parameters(c) / 1e6 for c in (EnergyConfig(), run_5)] == pytest.approx([7.4, 36.5], abs=.1)
    assert trained_parameters(EnergyConfig(**SCALES['laptop'])) == pytest.approx(216_484, rel=.01)


def test_what_cannot_be_solved_is_said():
    model, (puzzles, _) = build_model(SMOKE), boards(2)
    for changes in (dict(chains=0), dict(langevin_steps=-1), dict(step_size=-1.)):
        with pytest.raises(UserError): SMOKE.replace(**changes)
    with pytest.raises(UserError, match='knows boards of 2x2 boxes'): solve(model, torch.zeros(1, 36), SMOKE)
    with pytest.raises(UserError, match='a digit beyond 4'): solve(model, puzzles + 4, SMOKE)
    with torch.no_grad(): model.predictor.last.bias[0] = math.nan
    with pytest.raises(UserError, match='step 0: the energy of 2 of 2 boards is not finite'):
        solve(model, puzzles, SMOKE)
    assert model.training  # left as it was


def test_a_smoke_run_leaves_a_record(tmp_path):
    record = fit(EnergyTask(SMOKE), SMOKE, tmp_path)
    found = record['metrics']
    assert all(0 <= value <= 1 for name, value in found.items() if 'accuracy' in name and 'correlation' not in name)
    assert found['oracle_langevin_best_cell_accuracy'] >= found['langevin_random_cell_accuracy']
    assert record['best']['metric'] == 'oracle_cell_accuracy' and len(record['curve']) > 20
    assert (tmp_path/'record.json').stat().st_size < 60_000
