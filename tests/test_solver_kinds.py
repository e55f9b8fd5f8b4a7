"""`reasonnb solve --by` and `reasonnb benchmark --by` with a solver of another system: a toy that is registered."""
import json, sys

import numpy as np, pytest
from typer.testing import CliRunner

from reasonnb.lab.cli import app
from reasonnb.sudoku.board import BoardShape, to_lines
from reasonnb.sudoku.generator import generate

SMALL = BoardShape(2, 3)
PUZZLES, SOLUTIONS = generate(6, SMALL, seed=3)
LINES, ANSWERS = to_lines(PUZZLES, SMALL), to_lines(SOLUTIONS, SMALL)
NO_SOLUTION = '12345.' + '.' * 12 + '.....6' + '.' * 12  # no digit is left for the last cell of the first row
LATTICE = 'reasonnb.systems.lattice.experiments'

SYSTEM = '''
from reasonnb.core.config import Config, System
SYSTEM = System('toy', ('toy_log',), config=Config, scales={}, experiments=(), build=None, job='jobs/toy.ipynb',
                solver='toy_kind:ENERGY')
'''

KIND = '''
from pathlib import Path
from types import SimpleNamespace
import torch
from reasonnb.sudoku.board import BoardShape
from reasonnb.sudoku.solver import prove
from reasonnb.sudoku.solving import Asked, SolverKind, checkpoint_for

SMALL = BoardShape(2, 3)

def checkpoints(): return {SMALL: Path('toy-2x3.pt')}

def load(box, checkpoint, device):
    path = Path(checkpoint) if checkpoint else checkpoint_for(box or SMALL, checkpoints())
    return SimpleNamespace(box=SMALL, path=path, about={})

def ask(solver, puzzles, chains=None, steps=None, seed=0):
    "A classical search, which takes a chain of as many steps as it is told."
    answers, counts, _ = prove(puzzles.numpy(), solver.box, limit=1)
    assert (counts > 0).all(), 'a board without a solution is asked for'
    each = torch.ones(len(puzzles), dtype=torch.long)
    return Asked(['solved'] * len(puzzles), answers=torch.as_tensor(answers).long(), moves=each * (steps or 5),
                 rollouts=each * (chains or 2), flop_per_move=10. + seed)

ENERGY = SolverKind('energy', checkpoints=checkpoints, load=load, ask=ask,
                    options=dict(chains=None, steps=None, seed=0))
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    "A system with a solver called energy, beside the lattice."
    (tmp_path/'toy_kind_system.py').write_text(SYSTEM)
    (tmp_path/'toy_kind.py').write_text(KIND)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv('REASONNB_SYSTEMS', f'toy_kind_system,{LATTICE}')
    yield tmp_path
    for name in ('toy_kind', 'toy_kind_system'): sys.modules.pop(name, None)


def shell(*words): return CliRunner().invoke(app, list(map(str, words)))


def test_a_system_brings_a_solver(toy):
    done = shell('solve', *LINES, '--by', 'energy')
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines() == [f'{answer} solved' for answer in ANSWERS]
    assert '6 solved' in done.stderr


def test_its_options_reach_it_and_its_costs_are_shown(toy):
    done = shell('solve', LINES[0], '--by', 'energy', '--json', '--steps', 7, '--chains', 3, '--seed', 2)
    row = json.loads(done.stdout)
    assert (row['verdict'], row['answer']) == ('solved', ANSWERS[0])
    assert (row['moves'], row['rollouts'], row['flop']) == (7, 3, 84.)
    row = json.loads(shell('solve', LINES[0], '--by', 'energy', '--json').stdout)
    assert (row['moves'], row['rollouts'], row['flop']) == (5, 2, 50.)


def test_boards_are_counted_checked_and_turned_for_it_too(toy):
    done = shell('solve', '.' * 36, NO_SOLUTION, '11' + '.' * 34, LINES[0], '.' * 81, '--by', 'energy')
    assert [line.split()[1] for line in done.stdout.splitlines()] == ['several', 'impossible', 'impossible', 'solved']
    assert done.exit_code == 1 and 'a board of 3x3 boxes; there are solvers for 2x3' in done.stderr
    turned = PUZZLES[0].reshape(6, 6).T.reshape(-1)
    high = BoardShape(3, 2)
    done = shell('solve', to_lines(turned[None], high)[0], '--by', 'energy', '--box', '3x2')
    digits = np.array([int(digit) for digit in done.stdout.split()[0]])
    assert (digits.reshape(6, 6).T.reshape(-1) == SOLUTIONS[0]).all()
    done = shell('solve', '.' * 81, '--by', 'energy', '--box', '3x3')
    assert (done.exit_code, done.stderr) == (2, 'reasonnb: --box 3x3: there are solvers for 2x3 boxes\n')


@pytest.mark.parametrize('words, message', [
    (['solve', LINES[0], '--by', 'energy', '--agreement', 2],
     '--agreement is not for --by energy; it takes chains, steps, seed'),
    (['solve', LINES[0], '--by', 'energy', '--rollouts', 0, '--agreement', 2],
     '--rollouts, --agreement are not for --by energy; it takes chains, steps, seed'),
    (['solve', LINES[0], '--chains', 2], '--chains is not for --by lattice; it takes rollouts, agreement, seed'),
    (['solve', LINES[0], '--by', 'energie'], "unknown solver 'energie': did you mean 'energy'?"),
    (['benchmark', '--by', 'energy', '--steps', 2],
     '--by energy has no benchmark; own lists are solved by: reasonnb solve FILE --by energy'),
    (['benchmark', '--steps', 2], '--steps is not for --by lattice; it takes rollouts, agreement, seed'),
])
def test_what_is_not_for_a_solver_is_one_line(toy, words, message):
    done = shell(*words)
    assert (done.exit_code, done.stdout, done.stderr) == (2, '', f'reasonnb: {message}\n')


def test_the_default_is_the_lattice_wherever_it_is_registered(toy):
    row = json.loads(shell('solve', LINES[0], '--json', '--network').stdout)
    assert row['verdict'] == 'solved' and row['flop'] > 1000 and 'toy_kind' in sys.modules


def test_without_the_lattice_another_must_be_named(toy, monkeypatch):
    monkeypatch.setenv('REASONNB_SYSTEMS', 'toy_kind_system')
    assert shell('solve', LINES[0], '--by', 'energy').exit_code == 0
    done = shell('solve', LINES[0])
    assert (done.exit_code, done.stderr) == (2, "reasonnb: unknown solver 'lattice': known: energy\n")


def test_help_imports_no_solver(toy):
    for words in (['--help'], ['solve', '--help']): assert shell(*words).exit_code == 0
    assert 'solve' in shell('--help').stdout and 'toy_kind' not in sys.modules
