"""Speed of the board solver against its peers, as ratios measured in one run.

    python benchmarks/solver.py            prints a table, writes benchmarks/solver.json

CPU seconds of one thread, the best of several interleaved rounds, so that other jobs on the machine matter little.
Uses the public lists where they are found (REASONNB_DATA, data/, ../shared/data), generated puzzles otherwise.
"""
import argparse, csv, json, os, platform, time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from ortools.sat.python import cp_model
from sudoku import Sudoku

from reasonnb.sudoku.board import BoardShape
from reasonnb.sudoku.generator import generate, random_grids
from reasonnb.sudoku.solver import prove

ROOT, BOX = Path(__file__).resolve().parents[1], BoardShape(3, 3)


def puzzles(name, n, clues=None):
    "The first n puzzles of a list and its name; generated ones where there is no list."
    for folder in (Path(os.environ.get('REASONNB_DATA', ROOT / 'data')), ROOT / 'data', ROOT / '../shared/data'):
        file = folder / 'sudoku' / f'{name}.csv'
        if file.exists():
            with open(file) as f: rows = [row['question'] for row, _ in zip(csv.DictReader(f), range(n))]
            return np.array([[int(c) if c.isdigit() else 0 for c in row] for row in rows], np.uint8), name
    return generate(n, BOX, clues=clues)[0], f'generated, {clues or "minimal"}'


def cp_sat(batch, search_only=False):
    "Prove uniqueness: find the solution, forbid it, find no other. `search_only`: returns CPU seconds of the searches."
    searching = 0.
    for puzzle in batch.reshape(-1, 9, 9).tolist():
        model = cp_model.CpModel()
        x = [[model.new_int_var(1, 9, '') for _ in range(9)] for _ in range(9)]
        for i in range(9):
            model.add_all_different(x[i])
            model.add_all_different([x[r][i] for r in range(9)])
            model.add_all_different([x[i // 3 * 3 + k // 3][i % 3 * 3 + k % 3] for k in range(9)])
            for j in range(9):
                if puzzle[i][j]: model.add(x[i][j] == puzzle[i][j])
        cp = cp_model.CpSolver()
        cp.parameters.num_workers = 1
        start = time.process_time()
        assert cp.solve(model) == cp_model.OPTIMAL
        searching += time.process_time() - start
        other = []
        for i in range(9):
            for j in range(9):
                if puzzle[i][j]: continue
                b = model.new_bool_var('')
                model.add(x[i][j] != cp.value(x[i][j])).only_enforce_if(b)
                other.append(b)
        model.add_bool_or(other)
        start = time.process_time()
        assert cp.solve(model) == cp_model.INFEASIBLE
        searching += time.process_time() - start
    return searching if search_only else None


def py_sudoku(batch, proof=False):
    "Solve, or prove uniqueness, with py-sudoku."
    for puzzle in batch.reshape(-1, 9, 9).tolist():
        board = Sudoku(3, 3, board=[[c or None for c in row] for row in puzzle])
        if proof: assert not board.has_multiple_solutions()
        else: board.solve()


def contests():
    "Rows (what, who, puzzles, n, call); a call may return its own seconds."
    easy, easy_name = puzzles('easy_45_clues', 5000, 45)
    middle, middle_name = puzzles('medium_35_clues', 5000, 35)
    sparse, sparse_name = puzzles('clue17', 10000)
    yield 'solve', 'reasonnb', easy_name, len(easy), lambda: prove(easy, BOX, 1, 1)
    yield 'solve', 'py-sudoku', easy_name, 100, lambda: py_sudoku(easy[:100])
    yield 'prove', 'reasonnb', middle_name, len(middle), lambda: prove(middle, BOX, 2, 1)
    yield 'prove', 'py-sudoku', middle_name, 20, lambda: py_sudoku(middle[:20], proof=True)
    yield 'prove', 'reasonnb', sparse_name, len(sparse), lambda: prove(sparse, BOX, 2, 1)
    yield 'prove', 'CP-SAT', sparse_name, 20, lambda: cp_sat(sparse[:20], search_only=True)
    yield 'prove', 'CP-SAT with its Python model', sparse_name, 20, lambda: cp_sat(sparse[:20])
    for name in ('hard_25_clues', 'top1465', 'se11', 'multi_solution'):
        batch, found = puzzles(name, 3000)
        if found == name: yield 'prove', 'reasonnb', name, len(batch), lambda batch=batch: prove(batch, BOX, 2, 1)
    yield 'generate', 'reasonnb', '9x9 minimal', 2000, lambda: generate(2000, BOX, workers=1)
    yield 'generate', 'reasonnb', '9x9 with 30 clues', 4000, lambda: generate(4000, BOX, clues=30, workers=1)
    yield 'generate', 'reasonnb', '6x6 minimal', 8000, lambda: generate(8000, BoardShape(2, 3), workers=1)
    large = BoardShape(4, 4)
    yield 'generate', 'reasonnb', '16x16 with 110 clues', 200, lambda: generate(200, large, clues=110, workers=1)
    yield 'generate', 'reasonnb', '9x9 full grids', 8000, lambda: random_grids(8000, BOX, workers=1)


def seconds(call):
    "CPU seconds of a call, or the number that it returns."
    start = time.process_time()
    own = call()
    return own if isinstance(own, float) else time.process_time() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=5, help='the best of so many')
    parser.add_argument('--out', type=Path, default=Path(__file__).with_suffix('.json'))
    args = parser.parse_args()
    prove(np.zeros((1, 81), int), BOX), generate(1, BOX)      # compile or load
    entries = list(contests())
    by_round = [[seconds(call) for *_, call in entries] for _ in range(args.rounds)]
    best = [min(times) for times in zip(*by_round)]
    rows = [dict(what=what, who=who, puzzles=on, n=n, per_second=float(f'{n / s:.3g}'))
            for (what, who, on, n, _), s in zip(entries, best)]
    mine = {(r['what'], r['puzzles']): r['per_second'] for r in rows if r['who'] == 'reasonnb'}
    for r in rows:
        ratio = float(f"{mine[r['what'], r['puzzles']] / r['per_second']:.3g}")
        r['ratio'] = None if r['who'] == 'reasonnb' else ratio
        faster = f"   reasonnb is {r['ratio']:,.0f} times as fast" if r['ratio'] else ''
        print(f"{r['what']:9} {r['puzzles']:22} {r['who']:30} {r['per_second']:>9,.0f} /s{faster}")
    report = dict(unit='puzzles per CPU second of one core', best_of=args.rounds, machine=platform.machine(),
                  python=platform.python_version(),
                  versions={p: version(p) for p in ('numba', 'numpy', 'ortools', 'py-sudoku')}, rows=rows)
    temporary = args.out.with_suffix('.tmp')
    temporary.write_text(json.dumps(report, indent=1) + '\n')
    os.replace(temporary, args.out)


if __name__ == '__main__': main()
