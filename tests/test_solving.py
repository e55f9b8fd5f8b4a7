"""The trained solver as it is used: damaged files, odd lines, streams, interrupts; and what holds for every answer."""
import gzip, json, os, signal, subprocess, sys
from pathlib import Path

import numpy as np, pytest, torch
from hypothesis import HealthCheck, given, settings, strategies as st
from typer.testing import CliRunner

from pairs import copied, rehash
from reasonnb.core.config import UserError
from reasonnb.lab.cli import app
from reasonnb.systems.lattice import benchmark, neural_solver
from reasonnb.sudoku import solving
from reasonnb.sudoku.board import BoardShape, agrees, is_solved, to_line, to_lines
from reasonnb.sudoku import tiers
from reasonnb.sudoku.generator import generate
from reasonnb.sudoku.refutation import few_solutions
from reasonnb.systems.lattice.neural_solver import AGREEMENT, checkpoints, load_solver, solve

REPO = Path(__file__).resolve().parents[1]
SMALL = BoardShape(2, 3)
PUZZLES, SOLUTIONS = generate(40, SMALL, seed=11)
LINES, ANSWERS = to_lines(PUZZLES, SMALL), to_lines(SOLUTIONS, SMALL)
NO_SOLUTION = '12345.' + '.' * 12 + '.....6' + '.' * 12  # no digit is left for the last cell of the first row


def shell(*words): return CliRunner().invoke(app, ['solve', *map(str, words)])


def process(*words, **more):
    command = [sys.executable, '-c', 'from reasonnb.lab.cli import app; app()', 'solve', *map(str, words)]
    return subprocess.Popen(command, cwd=REPO, text=True, bufsize=1, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, **more)


@pytest.fixture
def pair(tmp_path):
    "A copy of the shipped files for 6x6 boards."
    return copied(checkpoints()[SMALL], tmp_path)


def spoil_weights(path):
    state = torch.load(path, weights_only=True)
    state['config']['d_model'] = 16
    torch.save(state, path)
    rehash(path)


def rename_field(path):
    state = torch.load(path, weights_only=True)
    state['config']['breadth'] = 16
    torch.save(state, path)
    rehash(path)


def overwrite(path, content, believed=False):
    path.write_bytes(content)
    if believed: rehash(path)


@pytest.mark.parametrize('damage, message', [
    (lambda p: overwrite(p, p.read_bytes()[:-1000]), 'SHA-256 differs'),
    (lambda p: overwrite(p, b''), 'SHA-256 differs'),
    (lambda p: overwrite(p, p.read_bytes() + b'x'), 'SHA-256 differs'),
    (lambda p: overwrite(p, p.read_bytes()[:-1000], True), 'holds no weights'),
    (lambda p: overwrite(p, b'', True), 'holds no weights'),
    (lambda p: overwrite(p.with_suffix('.json'), b'{"sha256": '), 'is not valid JSON'),
    (lambda p: overwrite(p.with_suffix('.json'), b'[]'), 'is not a solver made by `ship`'),
    (lambda p: p.with_suffix('.json').unlink(), 'lattice-2x3.json is missing'),
    (lambda p: p.unlink(), 'no checkpoint'),
    (spoil_weights, 'do not fit its settings'),
    (rename_field, 'breadth'),
])
def test_a_damaged_pair_is_one_line(pair, damage, message):
    damage(pair)
    with pytest.raises(UserError, match=message): load_solver(checkpoint=pair)
    done = shell(LINES[0], '--checkpoint', pair)
    assert done.exit_code == 2 and done.stdout == '' and message in done.stderr and done.stderr.count('\n') == 1


def test_shapes_without_a_checkpoint(pair, monkeypatch):
    with pytest.raises(UserError, match='is for 2x3 boxes, the puzzle has 3x3'): solve('.' * 81, checkpoint=pair)
    with pytest.raises(UserError, match='no checkpoint for 4x4 boxes; there are some for 2x3, 3x3'): solve('.' * 256)
    done = shell('.' * 81, '--checkpoint', pair)
    assert done.exit_code == 1 and 'a board of 3x3 boxes; there are solvers for 2x3' in done.stderr
    monkeypatch.setenv('REASONNB_ROOT', str(pair.parent))
    (pair.parent/'nbs').mkdir(), (pair.parent/'settings.ini').write_text('lib_name = reasonnb')
    done = shell(LINES[0])
    assert done.exit_code == 2 and 'there is none in data/checkpoints' in done.stderr


def test_a_file_as_it_comes(tmp_path):
    file = tmp_path/'mixed.csv'
    rows = ['source,question,answer', f'a,{LINES[0]},{ANSWERS[0]}', '', '# a remark', f'b,{LINES[1][:-1]},', 'c',
            f'd,{LINES[2][:-1]}é,', f'e,"{LINES[3]}",wrong', f'f,11{"." * 34},', f'g,{LINES[4].replace(".", "0")},']
    file.write_bytes(b'\xef\xbb\xbf' + '\r\n'.join(rows).encode())
    done = shell(file)
    shown = done.stdout.splitlines()
    said = [line for line in done.stderr.splitlines() if 'are taken to have 2x3 boxes' not in line]
    assert done.exit_code == 1 and len(said) == len(done.stderr.splitlines()) - 1
    assert shown == [f'{ANSWERS[0]} solved', f'{ANSWERS[3]} solved', '11' + '.' * 34 + ' impossible',
                     f'{ANSWERS[4]} solved']
    assert [line.split(': ')[1].rpartition(' ')[2] for line in said[:-2]] == ['5', '6', '7', '9']
    assert '35 cells' in said[0] and '1 fields' in said[1]
    assert "'Ã'" not in said[2] and 'clue 1 stands twice' in said[3]
    assert said[-2].startswith('reasonnb: singles answered 3 of 7, ')
    assert said[-1] == '3 solved, 3 unreadable, 1 impossible'
    rows = [json.loads(line) for line in shell(file, '--json').stdout.splitlines()]
    assert [row['line'] for row in rows] == [2, 5, 6, 7, 8, 9, 10]
    assert rows[0]['answer'] == ANSWERS[0] and rows[1]['verdict'] == 'unreadable' and rows[5]['answer'] is None
    assert rows[0]['by'] == 'singles' and rows[0]['moves'] == rows[0]['flop'] == 0
    rows = [json.loads(line) for line in shell(file, '--json', '--network').stdout.splitlines()]
    assert rows[0]['by'] == 'lattice' and rows[0]['moves'] > 0 and rows[0]['flop'] > 0


def test_several_arguments_and_a_packed_file(tmp_path):
    packed = tmp_path/'list.gz'
    packed.write_bytes(gzip.compress('\n'.join(LINES[:3]).encode()))
    done = shell(LINES[5], packed, LINES[6])
    assert done.exit_code == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == [ANSWERS[i] for i in (5, 0, 1, 2, 6)]
    assert shell(LINES[0], '--network').stderr.count('\n') == 1  # the shape of the boxes; nothing to sum up


EASY = '53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79'
GRID = '534678912672195348198342567859761423426853791713924856961537284287419635345286179'
GUESSES = '8..........36......7..9.2...5...7.......457.....1...3...1....68..85...1..9....4..'
ALONE = """import sys
from typer.testing import CliRunner
from reasonnb.lab.cli import app
done = CliRunner().invoke(app, ['solve', *sys.argv[1:]])
heavy = {'torch', 'numba', 'scipy', 'pandas', 'matplotlib'} & set(sys.modules)
print(done.exit_code, done.stdout.strip(), sorted(heavy))
"""


def test_an_easy_puzzle_needs_no_network():
    said = [subprocess.run([sys.executable, '-c', ALONE, *words], cwd=REPO, capture_output=True, text=True).stdout
            for words in ([EASY.replace('.', '0')], [EASY, EASY, '--json'])]
    assert said[0] == f'0 {GRID} solved []\n' and said[1].count(GRID) == 2 and said[1].endswith(' []\n')


def test_singles_answer_as_the_long_way_does(tmp_path):
    short, file = shell(EASY, '--json'), tmp_path/'one.txt'
    file.write_text(EASY)
    for long in (shell(file, '--json'), shell(EASY, '--json', '--box', '3x3')):
        rows = [json.loads(done.stdout) | dict(seconds=0, file=None) for done in (short, long)]
        assert rows[0] == rows[1] and short.stderr == long.stderr and short.exit_code == long.exit_code == 0
    assert shell('55' + EASY[2:]).stdout.endswith(' impossible\n')
    for words in (['--network'], ['--by', 'lattice'], ['--seed', '0'], ['--device', 'cpu']):
        done = shell(EASY, '--json', *words)
        assert json.loads(done.stdout)['by'] == 'lattice' and 'singles' not in done.stderr


def test_only_what_singles_do_not_fill_is_for_the_network():
    done = shell(GUESSES, EASY, '--json', '--box', '3x3')
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row['by'] for row in rows] == ['lattice', 'singles'] and rows[1]['answer'] == GRID
    assert 'singles answered 1 of 2' in done.stderr


def test_what_cannot_be_read(tmp_path):
    empty, binary = tmp_path/'empty.txt', tmp_path/'binary.txt'
    empty.touch(), binary.write_bytes(b'\0\1\2' * 40)
    cases = ((empty, 1, 'holds no puzzle'), (tmp_path/'gone.txt', 2, 'neither a file nor a puzzle'),
             (tmp_path, 2, 'is a folder'), (binary, 2, 'is no text file'))
    for word, code, message in cases:
        done = shell(word)
        assert (done.exit_code, done.stdout) == (code, '') and message in done.stderr, word
        assert done.stderr.count('\n') == 1, word
    assert shell(LINES[0], tmp_path/'gone.txt').stdout == ''  # found out before anything is solved
    if os.geteuid():
        empty.chmod(0)
        assert 'cannot be read' in shell(empty).stderr
    for words in (('--rollouts', '-1', LINES[0]), ('--device', 'abacus', LINES[0])): assert shell(*words).exit_code == 2


def test_puzzles_that_are_none():
    none, several, clash = solve([NO_SOLUTION, '1' + '.' * 35, '11' + '.' * 34], rollouts=1, agreement=3)
    assert (none.verdict, several.verdict, clash.verdict) == ('impossible', 'several', 'impossible')
    assert none.why == 'no solution: proven by search' and none.moves == 0
    assert 'clue 1 stands twice in row 1' in clash.why
    assert not none.answer.any() and not clash.answer.any()
    assert is_solved(several.answer, SMALL) and several.answer[0] == 1
    done = shell(NO_SOLUTION, '--rollouts', 1)
    assert done.exit_code == 1 and done.stdout == f'{NO_SOLUTION} impossible\n'
    assert 'no solution: proven by search' in done.stderr
    done = shell('--', LINES[7].replace('.', '-'))
    assert done.stdout.startswith(ANSWERS[7])


def two_solutions():
    "A board with two solutions: a puzzle without one of its clues."
    for puzzle in PUZZLES:
        for cell in np.flatnonzero(puzzle):
            less = np.where(np.arange(36) == cell, 0, puzzle)
            if few_solutions(less, SMALL, most=3) == 2: return less


def test_an_answer_to_a_board_of_two_solutions_is_one_of_several():
    board = two_solutions()
    two, one = solve([board, PUZZLES[0]])
    assert (two.verdict, one.verdict) == ('several', 'solved')
    assert two.why == 'one of several solutions: counted by search' and one.why == ''
    assert is_solved(two.answer, SMALL) and agrees(board, two.answer) and two.moves > 0
    done = shell(to_line(board, SMALL), LINES[0])
    assert done.exit_code == 1 and '1 several, 1 solved' in done.stderr
    assert done.stdout == f'{to_line(two.answer, SMALL)} several\n{ANSWERS[0]} solved\n'
    assert 'argument 1: one of several solutions' in done.stderr


@pytest.mark.parametrize('counted, verdict', [(1, 'solved'), (None, 'solved'), (2, 'several')])
def test_the_count_gives_the_network_no_digit(counted, verdict, monkeypatch):
    "Whatever is counted, the answer is that of the network, at the same price; only the label differs."
    boards = [two_solutions(), *PUZZLES[:3]]
    network = neural_solver.reason(load_solver(SMALL).network, torch.as_tensor(np.stack(boards)).long(), SMALL,
                                   load_solver(SMALL).budget())
    monkeypatch.setattr(solving, 'few_solutions', lambda *words, **more: counted)
    for found, answer, moves in zip(solve(boards), network.answers, network.moves, strict=True):
        assert (found.verdict, found.moves) == (verdict, moves) and np.array_equal(found.answer, answer)


def test_both_commands_ask_for_the_same_agreement(monkeypatch, tmp_path):
    asked = []
    def search(network, puzzles, box, budget):
        asked.append(budget.agreement)
        return real(network, puzzles, box, budget)
    real = neural_solver.reason
    monkeypatch.setattr(neural_solver, 'reason', search)
    monkeypatch.setattr(benchmark, 'measure', lambda solver, n, budget, **more: asked.append(budget.agreement))
    lines, out = tmp_path/'lines.txt', tmp_path/'report.json'
    lines.write_text(LINES[0])
    for words in ((), ('--agreement', 3)):
        assert shell(lines, '--network', *words).exit_code == 0
        measure = ['benchmark', '--box', '2x3', '--json', '--out', out, *words]
        assert CliRunner().invoke(app, list(map(str, measure))).exit_code == 0
    solve(LINES[:1])
    assert asked == [AGREEMENT, AGREEMENT, 3, 3, AGREEMENT] and AGREEMENT == 1


@pytest.mark.parametrize('odd', [np.zeros((2, 36)), np.full((1, 36), 7), np.full((1, 36), -1),
                                 torch.zeros(2, 2, 36, dtype=torch.long), [3], ['1' * 35], [LINES[0], 'x' * 36]])
def test_odd_input_of_the_call(odd):
    with pytest.raises(UserError): solve(odd)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.floats(0, 1), st.integers(1, 3))
def test_answers_keep_rules_and_givens(seed, share, agreement):
    "Full boards, minimal puzzles and everything between them and beyond."
    puzzles, solutions = generate(3, SMALL, seed=seed)
    rng = np.random.default_rng(seed)
    puzzles[1] = np.where(rng.random(36) < share, solutions[1], 0)  # may have several solutions
    puzzles[2] = rng.integers(0, 7, 36) * (rng.random(36) < share)  # may have none
    for puzzle, found in zip(puzzles, solve(puzzles, rollouts=1, agreement=agreement)):
        if found.verdict in ('solved', 'several'):
            assert is_solved(found.answer, SMALL) and agrees(puzzle, found.answer)
        else: assert not found.answer.any()
    assert solve(solutions)[0].verdict == 'solved'


def test_alone_or_in_company():
    together = solve(PUZZLES[:24])
    texts = list(map(str, together))
    for i in (0, 7, 21): assert str(solve(LINES[i])[0]) == texts[i]
    assert list(map(str, solve(torch.as_tensor(PUZZLES[:24])))) == texts == list(map(str, solve(LINES[:24])))
    assert [f.moves for f in solve(LINES[:24], seed=1)] != [f.moves for f in together]
    grid = generate(1, BoardShape(3, 3), seed=1)[1][0]
    big, small = solve([np.where(np.arange(81) % 9 == 2, 0, grid), LINES[0]])  # both shapes in one call
    assert (big.answer == grid).all() and to_line(small.answer, SMALL) == ANSWERS[0]


def test_a_stream_is_answered_while_it_comes_and_can_be_stopped():
    running = process('-')
    running.stdin.write(LINES[0] + '\nrubbish\n')
    assert running.stdout.readline() == f'{ANSWERS[0]} solved\n'  # the stream is still open
    running.stdin.write(LINES[1][:10])  # half a line waits for its rest
    running.stdin.flush()
    running.stdin.write(LINES[1][10:] + '\n')
    assert running.stdout.readline() == f'{ANSWERS[1]} solved\n'
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130 and 'Traceback' not in err and 'interrupted' in err


def test_a_reader_that_leaves(tmp_path):
    file = tmp_path/'many.txt'
    file.write_text('\n'.join(LINES * 100))
    running = process(file, '--agreement', 1)
    assert running.stdout.readline().endswith('solved\n')
    running.stdout.close()
    assert 'Traceback' not in running.stderr.read() and running.wait(timeout=60) != 0


@pytest.mark.parametrize('tier', ['minimal', 'se_easy'])
def test_a_tier_has_no_board_of_a_training_grid(tier, monkeypatch):
    classes = np.arange(40, dtype=np.uint64) % 8
    everything = benchmark.PuzzleSet(PUZZLES, SOLUTIONS, np.zeros(40, np.float32), classes, SMALL, 'toy', 'hash')
    monkeypatch.setattr(tiers, 'load', lambda *words, **more: everything)
    trained = np.array([1, 5], np.uint64)
    boards, size, left_out = tiers.tier_boards(tier, SMALL, trained, n=0)
    assert set(boards.classes) == {0, 2, 3, 4, 6, 7} and (size, left_out, len(boards)) == (40, 10, 30)
    sample = tiers.tier_boards(tier, SMALL, trained, n=12)[0]
    assert len(sample) == 12 and not set(sample.classes) & {1, 5}


def test_a_benchmark_goes_on_where_it_stopped(tmp_path, monkeypatch):
    solver, path, real = load_solver(SMALL), tmp_path/'report.json', benchmark.run_tier
    classes = np.arange(12, dtype=np.uint64)
    boards = benchmark.PuzzleSet(PUZZLES[:12], SOLUTIONS[:12], np.zeros(12, np.float32), classes, SMALL, 'toy', 'hash')
    monkeypatch.setattr(benchmark, 'tiers_of', lambda box: ('first', 'second', 'third'))
    monkeypatch.setattr(benchmark, 'tier_boards', lambda tier, *rest, **more: (boards, 40, 0))
    monkeypatch.setattr(benchmark, 'make_splits', lambda config: {'train': boards})
    done = []
    def run(*args, **more):
        done.append(1)
        if len(done) == 2: raise KeyboardInterrupt
        return real(*args, **more)
    monkeypatch.setattr(benchmark, 'run_tier', run)
    with pytest.raises(KeyboardInterrupt): benchmark.measure(solver, n=12, singles=1, path=path)
    first = json.loads(path.read_text())['tiers']
    assert list(first) == ['first']
    report = benchmark.measure(solver, n=12, singles=1, path=path)
    assert list(report['tiers']) == ['first', 'second', 'third']
    assert report['tiers']['first'] == first['first'] and len(done) == 4
    row = report['tiers']['third']
    assert row['wrong'] == 0 and row['solved'] + row['abstained'] + row['several'] == 12
    assert row['classical_per_second'] > 0
    path.write_text(path.read_text()[:50])
    with pytest.raises(UserError, match='not valid JSON'): benchmark.measure(solver, n=12, singles=1, path=path)
    moved = solver._replace(about=solver.about | {'sha256': 'other'})
    path.write_text(json.dumps(report))
    fresh = benchmark.measure(moved, n=12, tiers=('first',), singles=1, path=path)
    assert fresh['settings']['sha256'] == 'other'  # other weights: a new report
    assert list(benchmark.table(report)['tier']) == ['first', 'second', 'third']
    assert len(benchmark.figure(report).axes) == 2
