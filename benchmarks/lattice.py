"""What a call of the lattice network costs on a CPU, compiled and with tensors, and what that is worth in a search.

    python benchmarks/lattice.py [--rounds N] [--boards N]

The same states are given to the shipped network by its kernel and by tensors, in slices of 1 to 64, by tensors in one
of 512 as well, all interleaved in every round; readings are checked to agree to 1e-4. Then boards of a list are solved
by the kernel, by tensors in slices of 16 and of 512, in turns; the answers must be the same. CPU seconds of one
thread, so that other jobs matter little; ratios are medians over rounds with their quartiles.
Prints a table and writes it to benchmarks/lattice.json.
"""
import copy, json, platform, resource, statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch, typer

from reasonnb.sudoku.board import BoardShape
from reasonnb.sudoku.tiers import tier_boards
from reasonnb.systems.lattice.networks import SymmetricLattice, candidates
from reasonnb.systems.lattice.neural_solver import load_solver
from reasonnb.systems.lattice.search import call, reason

SLICES = (1, 4, 8, 16, 32, 64, 512)


class Tensors(SymmetricLattice):
    "The network without its kernel, which is for `SymmetricLattice` alone."


def without_kernel(network):
    "The same weights by tensors."
    twin = copy.deepcopy(network)
    twin.__class__ = Tensors
    return twin


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
    "Milliseconds of CPU time a state, by states in a call: the kernel's, the tensors', and their ratio."
    sides = solver.network, without_kernel(solver.network)
    alive = {n: candidates(puzzles[:n], solver.box) for n in SLICES}
    budget = {n: replace(solver.budget(), batch=n) for n in SLICES}
    expected = call(sides[1], alive[64], budget[64])
    for n in SLICES:
        for side in sides:
            for a, b in zip(call(side, alive[n], budget[n]), expected, strict=True):
                assert (a[:64] - b[:n]).abs().max() < 1e-4, f'slices of {n} read something else'
    times = {n: ([], []) for n in SLICES}
    for _ in range(rounds):
        for n in SLICES:
            for side, found in zip(sides, times[n], strict=True):
                again = max(1, 16 // n)
                def work():
                    for _ in range(again):
                        call(side, alive[n], budget[n])
                found.append(1e3 * sum(clock(work)[0]) / n / again)
    return {n: dict(kernel_ms=round(statistics.median(mine), 2), tensors_ms=round(statistics.median(theirs), 2),
                    **spread([b / a for a, b in zip(mine, theirs)])) for n, (mine, theirs) in times.items()}


def searches(solver, puzzles, rounds):
    "CPU seconds a board of a search by the kernel, and by tensors in slices of 16 and 512."
    own, tensors, answers = solver.budget(), without_kernel(solver.network), {}
    wide = replace(own, batch=512)
    kinds = dict(kernel=(solver.network, own), tensors_16=(tensors, own), tensors_512=(tensors, wide))
    rows = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, (network, budget) in kinds.items():
            seconds, found = clock(lambda: reason(network, puzzles, solver.box, budget))
            rows[kind].append(sum(seconds) / len(puzzles))
            answers[kind] = found.answers
        for kind in kinds:
            assert bool((answers[kind] == answers['kernel']).all()), f'another answer by {kind}'
    seconds = {kind: round(statistics.median(row), 3) for kind, row in rows.items()}
    over = {f'over_{kind}': spread([a / b for a, b in zip(rows[kind], rows['kernel'], strict=True)])
            for kind in ('tensors_16', 'tensors_512')}
    return dict(boards=len(puzzles), seconds=seconds, **over)


def main(rounds: int = 9, boards: int = 12, seed: int = 0):
    torch.set_num_threads(1)
    box = BoardShape(3, 3)
    solver = load_solver(box)
    puzzles = {tier: torch.as_tensor(tier_boards(tier, box, np.array([]), 512, seed)[0].puzzles).long()
               for tier in ('se11', 'clue17')}
    found = dict(machine=platform.processor() or platform.machine(), torch=torch.__version__,
                 slices=slices(solver, puzzles['clue17'], rounds),
                 searches={tier: searches(solver, rows[:boards], 3) for tier, rows in puzzles.items()})
    for n, row in found['slices'].items():
        print(f"{n:3} states a call: {row['kernel_ms']:6.2f} ms a state, tensors {row['tensors_ms']:6.2f}, "
              f"{row['ratio']} times [{row['low']}, {row['high']}]")
    for tier, row in found['searches'].items():
        print(f"{tier}: {row['seconds']} s a board; {row['over_tensors_16']['ratio']} times as fast as tensors in "
              f"slices of 16, {row['over_tensors_512']['ratio']} of 512")
    Path(__file__).with_suffix('.json').write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__': typer.run(main)
