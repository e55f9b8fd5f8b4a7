"""Answers of networks that have no energy, for an energy to judge: of the looped transformer and of the bare lattice.

    python benchmarks/wrong_answers.py RUN [--boards N]

RUN is the folder of a finished run of `recur_add` at scale laptop. The boards are the 6x6 test boards of `descent_six`
at laptop, so no energy was trained on their grids; a cell with a clue keeps its clue. The lattice answers with the
first full board of its first rollout, before any check by the rules; it is seldom wrong, so it
gets all 2,000 boards, and of its right answers only some are kept.
Writes data/wrong_answers.csv: system, puzzle, answer, solution, one line each, right and wrong answers alike.
"""
from pathlib import Path

import numpy as np, pandas as pd, torch, typer

from reasonnb.core.records import RunFolder
from reasonnb.lab.catalogue import resolve
from reasonnb.sudoku.board import to_lines
from reasonnb.sudoku.splits import make_splits
from reasonnb.systems.lattice.neural_solver import load_solver
from reasonnb.systems.lattice.search import reason
from reasonnb.systems.looped.task import build_task

torch.set_num_threads(1)


def boards(slug, scale, n):
    side = make_splits(resolve(slug, scale))['test']
    return side.box, *(torch.as_tensor(np.array(part[:n])).long() for part in (side.puzzles, side.solutions))


def looped(run, puzzles):
    "The last prediction of the looped transformer."
    state = RunFolder(run).load(RunFolder(run).checkpoint)
    config = resolve('recur_add', 'laptop')
    differs = {name for name, value in config.to_dict().items() if state['config'].get(name) != value}
    if differs - {'seed'}: raise SystemExit(f'{run} is another run: {", ".join(sorted(differs))} differ')
    task = build_task(config)
    task.model.load_state_dict(state['model'])
    with torch.no_grad(): logits = task.model.eval()(puzzles, config.iterations)[-1]
    return torch.where(puzzles > 0, puzzles, logits.argmax(-1) + 1)


def lattice(box, puzzles):
    "The first full board of the lattice's first rollout, and which boards have one."
    solver = load_solver(box)
    found = reason(solver.network, puzzles, box, solver.budget(1))
    return found.bare, (found.bare > 0).all(1)


def rows(system, box, puzzles, answers, solutions):
    lines = (to_lines(part.numpy().astype(np.uint8), box) for part in (puzzles, answers, solutions))
    return pd.DataFrame(dict(zip(('puzzle', 'answer', 'solution'), lines))).assign(system=system)


def main(run:Path, boards_each:int=typer.Option(600, '--boards')):
    box, puzzles, solutions = boards('descent_six', 'laptop', None)
    answers, full = lattice(box, puzzles)
    found = rows('bare lattice', box, puzzles[full], answers[full], solutions[full])
    wrong = found['answer'] != found['solution']
    found = [found[wrong], found[~wrong][:boards_each - wrong.sum()]]
    few, true = puzzles[:boards_each], solutions[:boards_each]
    found.append(rows('looped transformer', box, few, looped(run, few), true))
    table = pd.concat(found)[['system', 'puzzle', 'answer', 'solution']]
    table.to_csv('data/wrong_answers.csv', index=False)
    right = table['answer'] == table['solution']
    print(right.groupby([table['system'], table['puzzle'].str.len()]).agg(['size', 'sum']))


if __name__ == '__main__': typer.run(main)
