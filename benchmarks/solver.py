"""Speed of the board solver against its peers, as ratios measured in one run.

    python benchmarks/solver.py --peer DIR    prints a table, writes benchmarks/solver.json

DIR is a checkout of https://github.com/t-dillon/tdoku, commit af42618; without it tdoku is left out.

CPU seconds of one thread, the best of several interleaved rounds, so that other jobs on the machine matter little.
Uses the public lists where they are found (REASONNB_DATA, data/, ../shared/data), generated puzzles otherwise.
"""
import argparse, csv, ctypes, json, os, platform, subprocess, tempfile, time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from ortools.sat.python import cp_model
from sudoku import Sudoku

from reasonnb.sudoku.board import BoardShape, to_lines
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
    "Prove uniqueness: find the solution, forbid it, find no other. `search_only`: the CPU seconds of the searches."
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
    return dict(seconds=searching) if search_only else {}


def py_sudoku(batch, proof=False):
    "Solve, or prove uniqueness, with py-sudoku."
    for puzzle in batch.reshape(-1, 9, 9).tolist():
        board = Sudoku(3, 3, board=[[c or None for c in row] for row in puzzle])
        if proof: assert not board.has_multiple_solutions()
        else: board.solve()


LOOP = '''
#include "tdoku.h"
extern "C" size_t run(const char *lines, size_t n, size_t limit, char *answer) {
    size_t total = 0;
    for (size_t i = 0; i < n; i++) {
        size_t guesses = 0;
        TdokuSolverDpllTriadSimd(lines + 82 * i, limit, 0, answer, &guesses);
        total += guesses;
    }
    return total;
}
'''


def tdoku(checkout, folder):
    "Build tdoku with the loop above, so that no call from Python is timed; a function of (puzzles, limit)."
    (folder / 'loop.cc').write_text(LOOP)
    sources = [checkout / 'src' / name for name in ('solver_dpll_triad_simd.cc', 'util.cc')]
    flags = '-std=c++14 -O3 -march=native -fno-exceptions -fno-rtti -fpic -shared'.split()
    include = [f'-I{checkout / name}' for name in ('include', 'src')]
    subprocess.run(['c++', *flags, *include, *sources, folder / 'loop.cc', '-o', folder / 'peer.so'], check=True)
    run, answer = ctypes.CDLL(folder / 'peer.so').run, ctypes.create_string_buffer(82)
    run.argtypes, run.restype = (ctypes.c_char_p, *[ctypes.c_size_t] * 2, ctypes.c_char_p), ctypes.c_size_t
    def call(batch, limit):
        lines = ''.join(f'{line}\n' for line in to_lines(batch, BOX)).encode()
        start = time.process_time()
        guesses = run(lines, len(batch), limit, answer)
        return dict(seconds=time.process_time() - start, guesses=guesses / len(batch))
    return call


def ours(batch, limit):
    "Search with one thread."
    return dict(guesses=float(prove(batch, BOX, limit, 1)[2].mean()))


def contests(peer):
    "Rows (what, who, puzzles, n, call); a call may say its own seconds, and the guesses for a puzzle."
    easy, easy_name = puzzles('easy_45_clues', 5000, 45)
    middle, middle_name = puzzles('medium_35_clues', 5000, 35)
    sparse, sparse_name = puzzles('clue17', 10000)
    yield 'solve', 'reasonnb', easy_name, len(easy), lambda: ours(easy, 1)
    yield 'solve', 'py-sudoku', easy_name, 100, lambda: py_sudoku(easy[:100])
    yield 'prove', 'reasonnb', middle_name, len(middle), lambda: ours(middle, 2)
    yield 'prove', 'py-sudoku', middle_name, 20, lambda: py_sudoku(middle[:20], proof=True)
    yield 'prove', 'reasonnb', sparse_name, len(sparse), lambda: ours(sparse, 2)
    yield 'prove', 'CP-SAT', sparse_name, 20, lambda: cp_sat(sparse[:20], search_only=True)
    yield 'prove', 'CP-SAT with its Python model', sparse_name, 20, lambda: cp_sat(sparse[:20])
    if peer: yield 'prove', 'tdoku', sparse_name, len(sparse), lambda: peer(sparse, 2)
    yield 'solve', 'reasonnb', sparse_name, len(sparse), lambda: ours(sparse, 1)
    if peer: yield 'solve', 'tdoku', sparse_name, len(sparse), lambda: peer(sparse, 1)
    for name in ('hard_25_clues', 'top1465', 'se11', 'multi_solution'):
        batch, found = puzzles(name, 3000)
        if found != name: continue
        yield 'prove', 'reasonnb', name, len(batch), lambda batch=batch: ours(batch, 2)
        if peer: yield 'prove', 'tdoku', name, len(batch), lambda batch=batch: peer(batch, 2)
        if name != 'se11': continue
        yield 'solve', 'reasonnb', name, len(batch), lambda batch=batch: ours(batch, 1)
        if peer: yield 'solve', 'tdoku', name, len(batch), lambda batch=batch: peer(batch, 1)
    yield 'generate', 'reasonnb', '9x9 minimal', 2000, lambda: generate(2000, BOX, workers=1)
    yield 'generate', 'reasonnb', '9x9 with 30 clues', 4000, lambda: generate(4000, BOX, clues=30, workers=1)
    yield 'generate', 'reasonnb', '6x6 minimal', 8000, lambda: generate(8000, BoardShape(2, 3), workers=1)
    large = BoardShape(4, 4)
    yield 'generate', 'reasonnb', '16x16 with 110 clues', 200, lambda: generate(200, large, clues=110, workers=1)
    yield 'generate', 'reasonnb', '9x9 full grids', 8000, lambda: random_grids(8000, BOX, workers=1)


def timed(call):
    "CPU seconds of a call, or what it says of them, and guesses for a puzzle or None."
    start = time.process_time()
    said = call()
    taken = time.process_time() - start
    if not isinstance(said, dict): said = {}
    return said.get('seconds', taken), said.get('guesses')


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--peer', type=Path, metavar='DIR', help='a checkout of https://github.com/t-dillon/tdoku')
    parser.add_argument('--rounds', type=int, default=5, help='the best of so many')
    parser.add_argument('--out', type=Path, default=Path(__file__).with_suffix('.json'))
    args = parser.parse_args()
    if not args.peer: print('tdoku is left out: --peer DIR compares with it')
    with tempfile.TemporaryDirectory() as folder:
        peer = tdoku(args.peer, Path(folder)) if args.peer else None
        report = measured(list(contests(peer)), args.rounds)
    temporary = args.out.with_suffix('.tmp')
    temporary.write_text(json.dumps(report, indent=1) + '\n')
    os.replace(temporary, args.out)


def measured(entries, rounds):
    "Measure every row in turn, so many times over; prints a line for each and returns the report."
    prove(np.zeros((1, 81), int), BOX), generate(1, BOX), generate(1, BoardShape(2, 2))      # compile or load
    by_round = [[timed(call) for *_, call in entries] for _ in range(rounds)]
    rows, mine = [], {}
    for row, (what, who, on, n, _) in enumerate(entries):
        each = np.array([one[row][0] for one in by_round]) / n                               # seconds a puzzle
        mine.setdefault((what, on), each)
        quarters = np.quantile(each / mine[what, on], [.25, .5, .75])
        low, ratio, high = [None] * 3 if who == 'reasonnb' else [float(f'{q:.3g}') for q in quarters]
        guesses = by_round[0][row][1]
        rows.append(dict(what=what, who=who, puzzles=on, n=n, per_second=float(f'{1 / each.min():.3g}'), ratio=ratio,
                         quartiles=ratio and [low, high], guesses=guesses and float(f'{guesses:.3g}')))
        faster = f'   reasonnb is {ratio:,g} times as fast ({low:,g} to {high:,g})' if ratio else ''
        guessed = f'   {guesses:.3g} guesses' if guesses else ''
        print(f'{what:9} {on:22} {who:30} {1 / each.min():>9,.0f} /s{faster}{guessed}')
    versions = {name: version(name) for name in ('numba', 'numpy', 'ortools', 'py-sudoku')}
    return dict(unit='puzzles per CPU second of one core', best_of=rounds, machine=platform.machine(),
                python=platform.python_version(), versions=versions, rows=rows)


if __name__ == '__main__': main()
