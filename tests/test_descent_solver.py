"""`--by energy`: the shipped energies solve from a shell, say what they did not solve, refuse what is not theirs."""
import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pairs import copied, rehash
from reasonnb.core.config import UserError
from reasonnb.lab.cli import app
from reasonnb.sudoku.board import BoardShape, agrees, is_solved, to_lines
from reasonnb.sudoku.generator import generate
from reasonnb.systems.descent.benchmark import measure, table
from reasonnb.systems.descent.energy_solver import ask, checkpoints, load_solver, ship, solve

pytestmark = pytest.mark.usefixtures('one_thread')
SMALL = BoardShape(2, 3)
PUZZLES, SOLUTIONS = generate(12, SMALL, seed=21)
LINES, ANSWERS = to_lines(PUZZLES, SMALL), to_lines(SOLUTIONS, SMALL)


def shell(*words): return CliRunner().invoke(app, ['solve', '--by', 'energy', *map(str, words)])


@pytest.fixture
def pair(tmp_path):
    "A copy of the shipped files for 6x6 boards."
    return copied(checkpoints()[SMALL], tmp_path)


def test_energies_are_shipped_for_both_sizes_and_small():
    found = checkpoints()
    assert set(found) == {SMALL, BoardShape(3, 3)}
    for box, path in found.items():
        solver = load_solver(box)
        assert path.stat().st_size < 2**20 and solver.about['params'] < 10_000 and solver.box == box


def test_the_shell_solves_and_says_what_it_did_not():
    said = shell(*LINES)
    lines = said.stdout.splitlines()
    assert [line.split()[0] for line in lines if line.endswith(' solved')] <= ANSWERS
    for line, puzzle, answer in zip(lines, LINES, ANSWERS):
        board, verdict = line.split()
        assert (board, verdict) in {(answer, 'solved'), (puzzle, 'abstained')}
    assert said.exit_code == (0 if all(line.endswith(' solved') for line in lines) else 1)
    assert sum(line.endswith(' solved') for line in lines) >= 11


def test_what_has_no_solution_or_several():
    clash, several = shell('11' + '.' * 34), shell('1' + '.' * 35)
    assert clash.stdout.split()[-1] == 'impossible' and clash.exit_code == 1
    assert several.stdout.split()[-1] in ('several', 'abstained')


def test_json_has_the_cost():
    one = json.loads(shell('--json', '--chains', 3, '--steps', 10, LINES[0]).stdout)
    assert one['moves'] == 30 and one['rollouts'] == 3 and one['flop'] > 0 and one['box'] == '2x3'


@pytest.mark.parametrize('words, says', [
    (('--agreement', 2), '--agreement is not for --by energy; it takes'),
    (('--rollouts', 2), '--rollouts is not for --by energy; it takes'),
])
def test_options_of_another_solver_are_refused(words, says):
    said = shell(*words, LINES[0])
    assert said.exit_code == 2 and says in said.stderr and 'Traceback' not in said.stderr


def test_boards_on_their_side_are_turned():
    high = np.stack([board.reshape(6, 6).T.reshape(-1) for board in PUZZLES[:3]])
    found = solve(high, box=BoardShape(3, 2))
    for one, answer in zip(found, SOLUTIONS):
        assert one.verdict == 'abstained' or (one.answer.reshape(6, 6).T.reshape(-1) == answer).all()
    assert sum(one.verdict == 'solved' for one in found) >= 2


def test_a_box_shape_without_weights_is_said():
    with pytest.raises(UserError, match='no checkpoint for 5x5 boxes'): load_solver(BoardShape(5, 5))


def test_damaged_weights_are_said(pair):
    pair.write_bytes(pair.read_bytes()[:-50])
    with pytest.raises(UserError, match='SHA-256 differs'): load_solver(checkpoint=pair)
    pair.with_suffix('.json').unlink()
    with pytest.raises(UserError, match='is missing'): load_solver(checkpoint=pair)


def test_weights_of_other_settings_are_said(pair):
    state = torch.load(pair, weights_only=True)
    state['config']['width'] = 3
    torch.save(state, pair)
    rehash(pair)
    with pytest.raises(UserError, match='do not fit its settings'): load_solver(checkpoint=pair)


def test_no_rule_chooses(monkeypatch):
    "A right chain with a higher energy is not taken."
    solver = load_solver(SMALL)
    puzzles = torch.as_tensor(PUZZLES).long()
    few, many = ask(solver, puzzles, chains=1, steps=3), ask(solver, puzzles, chains=1, steps=24)
    for found in (few, many):
        shown = torch.tensor([verdict == 'solved' for verdict in found.verdicts])
        assert not found.answers[~shown].any()
        assert is_solved(found.answers[shown], SMALL).all() and agrees(puzzles[shown], found.answers[shown]).all()
    assert few.verdicts.count('solved') < many.verdicts.count('solved')


def test_ship_needs_a_finished_run_of_an_energy(tmp_path):
    with pytest.raises(UserError, match='no finished run'): ship(tmp_path)


def test_the_benchmark_goes_on_and_counts(tmp_path):
    solver, path, said = load_solver(SMALL), tmp_path/'report.json', []
    report = measure(solver, n=10, chains=2, path=path, say=said.append)
    assert measure(solver, n=10, chains=2, path=path) == report == json.loads(path.read_text())
    row = report['tiers']['minimal']
    assert row['chain'] <= row['oracle'] >= row['solved'] and row['n'] == 10 and 'minimal' in said
    assert list(table(report).index) == ['minimal']
