"""What a call of the lattice network costs on a CPU by the number of states in it, and what that is worth in a search.

    python benchmarks/lattice.py [--rounds N] [--boards N]

The same 64 states are given to the shipped network in slices of 1 to 64, in one of 512 as well, all interleaved in
every round; readings are checked to agree to 1e-5. Then boards of a list are solved twice, in slices of 512 and in
those of the solver, alternately; the answers must be the same. CPU seconds of one thread, so that other jobs matter
little; ratios are medians over rounds with their quartiles.
Prints a table and writes it to benchmarks/lattice.json.
"""
import json, platform, resource, statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch, typer

from reasonnb.sudoku.board import BoardShape
from reasonnb.sudoku.tiers import tier_boards
from reasonnb.systems.lattice.networks import candidates
from reasonnb.systems.lattice.neural_solver import load_solver
from reasonnb.systems.lattice.search import call, reason

SLICES = (1, 4, 8, 16, 32, 64, 512)


def clock(run):
    "CPU seconds of user and system, and the result."
    before = resource.getrusage(resource.RUSAGE_SELF)
    found = run()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return (after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime), found


def spread(ratios):
    "Median and quartiles."
    low, middle, high = statistics.quantiles(ratios, n=4)
    return dict(ratio=round(middle, 2), low=round(low, 2), high=round(high, 2))


def slices(solver, puzzles, rounds):
    "Milliseconds of CPU time a state."
    alive = {n: candidates(puzzles[:max(n, 64)], solver.box) for n in SLICES}
    budget = {n: replace(solver.budget(), batch=n) for n in SLICES}
    expected = call(solver.network, alive[64], budget[64])
    for n in SLICES:
        found = call(solver.network, alive[n], budget[n])
        for a, b in zip(found, expected):
            assert (a[:64] - b).abs().max() < 1e-5, f'slices of {n} read something else'
    times = {n: [] for n in SLICES}
    for _ in range(rounds):
        for n in SLICES:
            times[n].append(1e3 * sum(clock(lambda: call(solver.network, alive[n], budget[n]))[0]) / len(alive[n]))
    return {n: dict(ms=round(statistics.median(times[n]), 2),
                    **spread([a / b for a, b in zip(times[512], times[n])])) for n in SLICES}


def searches(solver, puzzles, rounds):
    "CPU seconds a board of a search, with slices of 512 and with the solver's own."
    own, rows, answers = solver.budget(), {'512': [], 'own': []}, {}
    for _ in range(rounds):
        for name, budget in (('512', replace(own, batch=512)), ('own', own)):
            seconds, found = clock(lambda: reason(solver.network, puzzles, solver.box, budget))
            rows[name].append([part / len(puzzles) for part in seconds])
            answers[name] = found.answers
        assert bool((answers['512'] == answers['own']).all()), 'another answer'
    total = {name: [sum(pair) for pair in rows[name]] for name in rows}
    return dict(boards=len(puzzles), slice=own.batch,
                seconds={name: round(statistics.median(total[name]), 3) for name in rows},
                system_share={name: round(statistics.median(s / (u + s) for u, s in rows[name]), 2) for name in rows},
                **spread([a / b for a, b in zip(total['512'], total['own'])]))


def main(rounds: int = 9, boards: int = 12, seed: int = 0):
    torch.set_num_threads(1)
    solver, box = load_solver(BoardShape(3, 3)), BoardShape(3, 3)
    puzzles = {tier: torch.as_tensor(tier_boards(tier, box, np.array([]), 512, seed)[0].puzzles).long()
               for tier in ('se11', 'clue17')}
    found = dict(machine=platform.processor() or platform.machine(), torch=torch.__version__,
                 slices=slices(solver, puzzles['clue17'], rounds),
                 searches={tier: searches(solver, rows[:boards], 3) for tier, rows in puzzles.items()})
    for n, row in found['slices'].items():
        print(f"slices of {n:3}: {row['ms']:6.2f} ms a state, {row['ratio']} times as fast as 512")
    for tier, row in found['searches'].items():
        print(f"{tier}: {row['seconds']['512']} s a board in slices of 512, {row['seconds']['own']} of {row['slice']}: "
              f"{row['ratio']} times as fast; system time {row['system_share']}")
    Path(__file__).with_suffix('.json').write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__': typer.run(main)
