"What people write boards as, written here and read back: every form, mixtures, other encodings, damage, and rubbish."
import gzip, json, re, warnings

import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from typer.testing import CliRunner

from reasonnb.lab.cli import app
from reasonnb.sudoku.board import BoardShape, to_line, to_text
from reasonnb.sudoku.datasets import load
from reasonnb.sudoku.generator import random_grids
from reasonnb.sudoku.reading import Reader, fault_of, read_stream, read_text
from reasonnb.sudoku.streams import whole_lines

BOXES = {4: BoardShape(2, 2), 6: BoardShape(2, 3), 9: BoardShape(3, 3), 16: BoardShape(4, 4)}
GRIDS = {side: random_grids(12, box, seed=2) for side, box in BOXES.items()}
SIDES = list(BOXES)
quick = settings(max_examples=30, deadline=None)


def boards(side, seed, n=2, share=.6):
    "Full boards with random holes; none in the first row, so that it shows more digits than smaller boards have."
    rng = np.random.default_rng(seed)
    grids = GRIDS[side][rng.integers(0, 12, n)]
    holes = rng.random(grids.shape) < share
    holes[:, :side] &= rng.random((n, side)) < .4
    holes[:, side - 1] = True # a puzzle, not an answer
    return np.where(holes, 0, grids)


def rows(grid, blank='.'):
    side = int(len(grid) ** .5)
    line = to_line(grid, BOXES[side]).replace('.', blank)
    return [line[i:i + side] for i in range(0, len(line), side)]


def framed(grid, bar='|', rule='-', corner='+', outer=True, spaced=False, blank='.'):
    side = int(len(grid) ** .5)
    box, out = BOXES[side], []
    pad = ' ' if spaced else ''
    def line(parts): return bar * outer + pad + (pad + bar + pad).join(parts) + pad + bar * outer
    width = len(pad.join('x' * box.cols)) + 2 * len(pad)
    border = corner * outer + corner.join([rule * width] * (side // box.cols)) + corner * outer
    for r, row in enumerate(rows(grid, blank)):
        if r % box.rows == 0 and (r or outer): out.append(border)
        out.append(line([pad.join(row[c:c + box.cols]) for c in range(0, side, box.cols)]))
    return '\n'.join(out + [border] * outer)


def line(grid, blank='.'): return ''.join(rows(grid, blank))


def spaced(grid, blank='.'): return '\n'.join(' '.join(row) for row in rows(grid, blank))


def pencil(grid):
    side = int(len(grid) ** .5)
    digits = '123456789'[:side]
    return '\n'.join(' '.join(c if c != '.' else digits[i % 3:] for i, c in enumerate(row)) for row in rows(grid))


def starred(grid):
    "Rows with a star for a blank, an x where a row has nothing but blanks."
    fewest = min(map(len, map(set, rows(grid))))
    return '\n'.join(rows(grid, '*' if fewest > 1 else 'x'))


def cells(grid, blank='0'): return [str(d) if d else blank for d in grid]


def table(grid, mark=',', blank='0'):
    side = int(len(grid) ** .5)
    return '\n'.join(mark.join(cells(grid, blank)[i:i + side]) for i in range(0, len(grid), side))


def nested(grid): return np.asarray(grid).reshape(int(len(grid) ** .5), -1).tolist()


FORMS = {
    'line': line,
    'zeros': lambda g: line(g, '0'),
    'star': lambda g: line(g, '*'),
    'x': lambda g: line(g, 'x'),
    'question': lambda g: line(g, '?'),
    'hash': lambda g: line(g, '#'),
    'dot in the middle': lambda g: line(g, '·'),
    'underscore': lambda g: line(g, '_'),
    'dash': lambda g: line(g, '-'),
    'at': lambda g: line(g, '@'),
    'quoted': lambda g: f'"{line(g)}",',
    'numbered': lambda g: f'17. {line(g)}',
    'colon': lambda g: f'17: {line(g)}',
    'rated': lambda g: f'11.9 {line(g)} # hard one',
    'named': lambda g: f'{line(g)};Easter Monster',
    'library': lambda g: f':0000:x:{line(g)}:::',
    'tag': lambda g: f'<game data="{line(g, "0")}" />',
    'yaml': lambda g: f'- "{line(g)}"',
    'rows': lambda g: '\n'.join(rows(g)),
    'spaced rows': spaced,
    'sdk': lambda g: '#A me\n#L easy\n[Puzzle]\n' + '\n'.join(rows(g)),
    'title': lambda g: 'Grid 01\n' + '\n'.join(rows(g, '0')),
    'starred rows': starred,
    'x rows': lambda g: '\n'.join(rows(g, 'x')),
    'frame': framed,
    'open frame': lambda g: framed(g, outer=False),
    'spaced frame': lambda g: framed(g, spaced=True),
    'ss': lambda g: framed(g, corner='*'),
    'bang': lambda g: framed(g, bar='!', outer=False),
    'equals': lambda g: framed(g, rule='='),
    'empty frame': lambda g: framed(g, blank=' '),
    'lines of boxes': lambda g: to_text(g, BOXES[int(len(g) ** .5)]),
    'one line of words': lambda g: ' '.join(rows(g)),
    'spaced line': lambda g: ' '.join(line(g)),
    'list of rows': lambda g: json.dumps(rows(g)),
    'dict': lambda g: json.dumps(dict(solution=line(g * 0 + 1), puzzle=line(g)), indent=1),
    'commas': lambda g: ','.join(cells(g)),
    'table': table,
    'empty fields': lambda g: table(g, ';', ''),
    'tabs': lambda g: table(g, '\t', ''),
    'list': lambda g: json.dumps(np.asarray(g).tolist()),
    'nested': lambda g: json.dumps(nested(g)),
    'nested, indented': lambda g: json.dumps(dict(puzzle=nested(g)), indent=2),
    'none': lambda g: json.dumps([[d or None for d in row] for row in nested(g)]),
    'numpy': lambda g: str(np.asarray(nested(g))),
    'lower case': lambda g: line(g).lower(),
    'full width': lambda g: ''.join(chr(ord(c) + 0xfee0) for c in line(g)),
}
# sixteen digits with 0 for a blank have a test of their own
ONLY = {'commas': (4, 6, 9), 'hash': (6, 9, 16), 'list': (4, 6, 9), 'numpy': (4, 6, 9)}
SMALL_ONLY = ('table', 'nested', 'nested, indented', 'zeros', 'title', 'tag') # 0 is a blank: it cannot be a digit here


def read(data, sides=SIDES, size=1 << 16):
    reader = Reader(sides)
    pieces = (data[i:i + size] for i in range(0, len(data), size))
    return [f for portion in read_stream(whole_lines(pieces), reader) for f in portion], reader


@pytest.mark.parametrize('name', FORMS)
@settings(max_examples=8, deadline=None)
@given(side=st.sampled_from(SIDES), seed=st.integers(0, 10**6))
def test_every_form_is_read_back(name, side, seed):
    if side not in ONLY.get(name, SIDES) or side == 16 and name in SMALL_ONLY: side = 9
    puzzles = boards(side, seed)
    text = '\n\n\n'.join(FORMS[name](g) for g in puzzles)
    found = read_text(text, SIDES if side != 4 else [9, 6, 4])
    assert not [fault_of(f) for f in found if f.fault], text
    assert [line(f.puzzle) for f in found] == [line(g) for g in puzzles], text


@quick
@given(names=st.lists(st.sampled_from(sorted(FORMS)), min_size=1, max_size=6), seed=st.integers(0, 10**6),
       end=st.sampled_from(['\n', '\r\n', '\r']), size=st.sampled_from([1, 7, 1 << 16]),
       encoding=st.sampled_from(['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be']))
def test_forms_one_after_the_other_in_any_encoding(names, seed, end, encoding, size):
    if encoding in ('utf-16-le', 'utf-16-be'): # not recognised without a mark and ASCII signs
        names = [name.replace('full width', 'line') for name in names]
    puzzles = boards(9, seed, len(names))
    text = '\n\n\n'.join(FORMS[name](g) for name, g in zip(names, puzzles)).replace('\n', end)
    found, _ = read(text.encode(encoding), size=size)
    assert [f.puzzle is not None and line(f.puzzle) for f in found] == [line(g) for g in puzzles], text


def test_pencilmarks_latin_1_and_two_on_a_line():
    a, b = boards(9, 5)
    one, = read_text(pencil(a), [9, 6])
    assert line(one.puzzle) == line(a) and one.note == 'candidates'
    both = f'{line(a)} {line(b)}'.encode(), f'{line(a)}\f{line(b)}'.encode(), f'{line(a)},{line(b)}\x1a'.encode()
    for data in (f'müßig\n{line(a)}'.encode('latin-1'), *both):
        found, reader = read(data)
        assert [line(f.puzzle) for f in found] == [line(g) for g in (a, b)[:len(found)]]
        assert len(found) + reader.prose == 2
    ends = ['\r', '\n', '\r\n', '\f', '\r\r', '']
    tall = ''.join(line(g) + end for g, end in zip(boards(9, 1, 6), ends))
    assert len(read(tall.encode())[0]) == 6


@pytest.mark.parametrize('mark', [',', ';', '\t', '|'])
@pytest.mark.parametrize('header', ['Quiz,Answer', 'id,sudoku,solved', 'puzzle,solution,difficulty', 'first,second',
                                    ''])
def test_tables(mark, header):
    puzzles = boards(9, 3, 3)
    answers = [next(g for g in GRIDS[9] if ((p == 0) | (p == g)).all()) for p in puzzles]
    names = header.split(',')
    first, last = ['17'] if 'id' in names or not header else [], ['hard'] if 'difficulty' in names else []
    fields = [[*first, line(p), line(a), *last] for p, a in zip(puzzles, answers)]
    found = read_text('\n'.join(mark.join(row) for row in [names] * bool(header) + fields), [9, 6])
    assert [line(f.puzzle) for f in found] == [line(p) for p in puzzles]
    assert [line(f.answer) for f in found] == [line(a) for a in answers]


@pytest.mark.parametrize('custom', [str, str.lower])
def test_hexadecimal_boards_keep_their_zeros(custom):
    puzzle = boards(16, 9, 1)[0]
    as_hex = line(puzzle).translate(str.maketrans('123456789ABCDEFG', '0123456789ABCDEF'))
    found, = read_text(custom(as_hex), [16])
    assert line(found.puzzle) == line(puzzle) and found.note == 'digits 0-F'
    zeros, = read_text(custom(line(puzzle, '0')), [16])
    assert line(zeros.puzzle) == line(puzzle) and not zeros.note
    few = line(GRIDS[16][0]).replace('G', '0', 9).replace('G', 'F')
    found, = read_text(few, [16])
    assert found.puzzle is None and '0 may be a blank or a digit' in found.fault


DAMAGE = { # what is done to a board, and the message
    'short': (lambda g: line(g)[:-1], '80 cells'),
    'long': (lambda g: line(g) + '.', '82 cells'),
    'sign': (lambda g: line(g)[:40] + '%' + line(g)[41:], "row 5, column 5 is '%'"),
    'row missing': (lambda g: '\n'.join(rows(g)[:-1]), '8 rows of 9 cells'),
    'cell missing': (lambda g: '\n'.join([*rows(g)[:4], rows(g)[4][1:], *rows(g)[5:]]), '80 cells (line'),
    'drawn': (lambda g: framed(g).replace(rows(g)[4][:3], rows(g)[4][:2], 1), '80 cells'),
    'commas': (lambda g: ','.join(cells(g)[1:]), '80 cells'),
}


@pytest.mark.parametrize('kind', DAMAGE)
def test_one_message_for_each_board_with_a_fault(kind):
    first, second, third = boards(9, 8, 3)
    damage, message = DAMAGE[kind]
    text = '\n\n\n'.join([framed(first), damage(second), framed(third)])
    found = read_text(text, [9, 6])
    good, bad = [f for f in found if not f.fault], [f for f in found if f.fault]
    assert [line(f.puzzle) for f in good] == [line(first), line(third)]
    assert len(bad) == 1 and message in fault_of(bad[0]), [fault_of(f) for f in bad]
    assert 15 < bad[0].first <= bad[0].last < text.count('\n') - 12


def dashed(grid, outer=False):
    "Dashes for the blanks, and rules of as many dashes."
    side = int(len(grid) ** .5)
    bands = ['\n'.join(rows(grid, '-')[r:r + BOXES[side].rows]) for r in range(0, side, BOXES[side].rows)]
    rule = '\n' + '-' * side + '\n'
    return rule.lstrip('\n') * outer + rule.join(bands) + rule.rstrip('\n') * outer


def labelled(grid):
    side = int(len(grid) ** .5)
    above = '  ' + ' '.join('123456789'[:side])
    return '\n'.join([above, *('ABCDEFGHI'[r] + ' ' + ' '.join(row) for r, row in enumerate(rows(grid)))])


DAMAGED = FORMS | {
    'bands': lambda g: to_text(g, BOXES[int(len(g) ** .5)]).replace('-', '').replace('+', ''),
    'double-spaced': lambda g: '\n\n'.join(rows(g)),
    'dashed': dashed,
    'dashed, framed': lambda g: dashed(g, True),
    'ruled rows': lambda g: '\n'.join(f'{r}\n{"+-" * len(r)}+' for r in rows(g)),
    'labelled': labelled,
    'blanks are dashes': lambda g: '\n'.join(rows(g, '-')),
    'markdown': lambda g: '\n'.join('|' + '|'.join(r) + '|' for r in rows(g)),
}
BETWEEN = ['\n', '\n\n', '\n\n\n', '\nGrid 2\n', '\n\nGrid 2\n\n']


SIGNS = list('123456789.0-|+* ,;x:\t"]')


def damaged(text, spans, rng):
    "The text with one damage, which boards are gone by half or more, and whether signs were changed."
    lines, starts = text.split('\n'), np.cumsum([0] + [len(x) + 1 for x in text.split('\n')])
    kind, i, at = rng.integers(9), int(rng.integers(len(lines))), int(rng.integers(len(text)))
    gone = []
    if kind == 0: # a line is missing
        out = '\n'.join(lines[:i] + lines[i + 1:])
        gone = [a < starts[i + 1] and starts[i] < b and b - a <= 2 * len(lines[i]) for a, b in spans]
    elif kind == 1: out = '\n'.join(lines[:i] + [lines[i]] + lines[i:])
    elif kind == 2: # two lines are one
        joined = '\n'.join(lines[:i + 1]) + ''.join(lines[i + 1:i + 2])
        out = joined + '\n' * (i + 2 < len(lines)) + '\n'.join(lines[i + 2:])
    elif kind == 3: out, gone = text[:at], [at < (a + b) / 2 for a, b in spans]
    elif kind == 4: out, gone = text[at:], [at > (a + b) / 2 for a, b in spans]
    elif kind == 5: out = text[:at] + text[at + 1:]
    elif kind == 6: out = text[:at] + rng.choice(SIGNS) + text[at:]
    elif kind == 7: out = text[:at] + rng.choice(SIGNS) + text[at + 1:]
    else: # a few lines, which may be a band, or a whole board and more
        j = min(len(lines), i + int(rng.integers(2, 4)))
        out = '\n'.join(lines[:i] + lines[j:])
        gone = [min(b, starts[j]) - max(a, starts[i]) > (b - a) / 2 for a, b in spans]
    fields = any(mark in text for mark in ',;\t') # of which the first or last may be cut to nothing
    return out, gone or [False] * len(spans), kind in (5, 6, 7) or fields and kind in (3, 4)


def can_have(name, side):
    "Is a form defined for boards of a side?"
    small = name in (*SMALL_ONLY, 'labelled', 'pencil', 'bands')
    return side in ONLY.get(name, SIDES) and not (side == 16 and small)


def check_damage(seed):
    rng = np.random.default_rng(seed)
    side, n = int(rng.choice([4, 6, 9, 9, 16], p=[.25, .2, .25, .2, .1])), int(rng.integers(1, 4))
    names = [name for name in sorted(DAMAGED) if can_have(name, side)]
    name, between = str(rng.choice(names)), str(rng.choice(BETWEEN))
    written = boards(side, seed, n)
    parts = [DAMAGED[name](g) for g in written]
    text, ends = between.join(parts), np.cumsum([len(p) + len(between) for p in parts])
    spans = [(e - len(p) - len(between), e - len(between)) for p, e in zip(parts, ends)]
    out, gone, signs = damaged(text, spans, rng)
    reader = Reader(SIDES)
    found = reader.feed(enumerate(out.split('\n'), 1)) + reader.end()
    good = [f.puzzle for f in found if f.puzzle is not None]
    told = f'seed {seed}, {name}: {[fault_of(f) for f in found if f.fault]}\n{out}'
    for puzzle in good:
        is_written = any(len(puzzle) == len(g) and (puzzle != g).sum() <= signs for g in written)
        assert is_written or name == 'dict' and (puzzle == 1).all(), f'not written: {line(puzzle)}; {told}'
    reported = any(f.fault for f in found) or reader.prose > len(re.findall(r'^Grid \d+$', out, re.M))
    assert reported or len(good) >= n - sum(gone), f'{len(good)} of {n - sum(gone)} and no word; {told}'


def test_a_damaged_text_gives_no_board_that_nobody_wrote():
    for seed in range(1500):
        check_damage(seed)


LINES = (
    st.text(alphabet=st.characters(codec='utf-8'), max_size=90),
    st.text(alphabet='123456789.0-|+* ,#', max_size=90),
    st.text(alphabet='1234.', min_size=4, max_size=4),
    st.sampled_from(['|...|...|...|', '5 3 . | . 7 .', '[', ']', '{"puzzle":', '---', '----', '12|34', '1--4', '']),
)


@quick
@given(st.lists(st.one_of(*LINES), max_size=20))
def test_rubbish_gives_no_board_that_is_not_there(lines):
    text = '\n'.join(lines)
    for found in read_text(text, SIDES):
        if found.puzzle is None or found.note: continue
        part = '\n'.join(re.split('\r\n|\r|\n', text)[found.first - 1:found.last])
        clues = ''.join(c for c in line(found.puzzle) if c != '.')
        there = re.sub(r'[\W_0]', '', part).upper()
        assert clues == there if found.first < found.last else clues in there # every digit of its lines, in this order


@quick
@given(st.binary(max_size=400))
def test_random_bytes_never_crash(data):
    from reasonnb.core.config import UserError
    try: read(data)
    except UserError as e: assert 'is no text file' in str(e)


def test_a_stream_needs_no_memory_and_answers_at_once():
    block = '\n\n'.join(framed(g) for g in boards(9, 1, 20)).encode() + b'\n\n'
    reader, most, count = Reader([9]), 0, 0
    for portion in read_stream(whole_lines(block for _ in range(15)), reader):
        count += len(portion)
        most = max(most, len(reader._drawing._items))
    assert count == 300 and most < 20
    reader = Reader([9])
    found = reader.feed(enumerate(framed(boards(9, 1)[0]).split('\n')[:-1], 1))
    assert not found # a tenth row may follow
    assert len(reader.feed([(13, '+---+---+---+'), (14, '')])) == 1


def test_the_command_reads_them_and_says_the_shape(tmp_path):
    def shell(*words, **more): return CliRunner().invoke(app, ['solve', '--agreement', '1', *map(str, words)], **more)
    grid = GRIDS[9][0]
    puzzle = np.where(np.arange(81) % 10 == 4, 0, grid)
    answer = f'{line(grid)} solved'
    file = tmp_path / 'drawn.txt'
    file.write_text('Nr 1\n' + framed(puzzle))
    done = shell(file)
    assert (done.exit_code, done.stdout) == (0, answer + '\n')
    assert "1 line holds no board, the first is line 1: 'Nr 1'" in done.stderr
    assert shell(*rows(puzzle)).stdout == shell('\n'.join(rows(puzzle))).stdout == answer + '\n'
    done = shell(*rows(puzzle)[:8], '.' * 8)
    assert done.exit_code == 1 and done.stderr.count('\n') == 1
    assert 'arguments 1-9: 80 cells (line 9 has 8)' in done.stderr
    packed = tmp_path / 'packed.gz'
    packed.write_bytes(gzip.compress(f'{line(puzzle)}\r{line(puzzle)}'.encode('utf-16'), mtime=0))
    assert shell(packed, line(puzzle)).stdout == (answer + '\n') * 3
    high = random_grids(1, BoardShape(3, 2), seed=4)[0]
    hole = to_line(np.where(np.arange(36) % 7 == 3, 0, high), BoardShape(3, 2))
    done = shell(hole, '--box', '3x2', '--json')
    shown = json.loads(done.stdout)
    assert (shown['answer'], shown['box'], done.stderr) == (to_line(high, BoardShape(3, 2)), '3x2', '')
    assert shell(hole, '--seed', '-1').exit_code == 2
    assert CliRunner().invoke(app, ['benchmark', '--seed', '-1']).exit_code == 2
    done = shell(hole)
    assert done.exit_code == 1 and 'are taken to have 2x3 boxes' in done.stderr
    assert 'and one with 3x2 boxes: --box 3x2' in done.stderr
    for box, message in (('4x4', 'there are solvers for 2x3, 3x3 boxes'), ('3', 'say rows x columns')):
        assert shell(hole, '--box', box).exit_code == 2 and message in shell(hole, '--box', box).stderr


def test_a_set_is_made_of_any_form(tmp_path):
    puzzles = [np.where(np.arange(81) % 10 == 4, 0, g) for g in GRIDS[9][:6]]
    for name in ('rows', 'title', 'frame', 'commas', 'table', 'star', 'tag', 'nested'):
        file = tmp_path / f'{name}.txt'
        drawn = '\n\n\n'.join(FORMS[name](g) for g in puzzles[:3])
        file.write_text(drawn + '\n\n\n' + '\n'.join(map(line, puzzles[3:])))
        with warnings.catch_warnings():
            warnings.simplefilter('ignore') # the titles
            found = load(str(file), data=tmp_path)
        assert [line(p) for p in found.puzzles] == [line(p) for p in puzzles], name
        assert (found.solutions == GRIDS[9][:6]).all(), name
    file = tmp_path / 'hex.txt'
    full = to_line(GRIDS[16][0], BOXES[16]).translate(str.maketrans('123456789ABCDEFG', '0123456789ABCDEF'))
    file.write_text('.' + full[1:])
    with pytest.warns(UserWarning, match='board with digits 0-F'): found = load(str(file), BOXES[16], data=tmp_path)
    assert (found.solutions == GRIDS[16][:1]).all() and (found.puzzles[0] == 0).sum() == 1


def test_what_is_no_list_is_one_line(tmp_path):
    (tmp_path / 'weights.txt').write_text('5' * 81)
    (tmp_path / 'image.png').write_bytes(b'\x89PNG\r\n\x1a\n' + b'\0' * 40)
    (tmp_path / 'prose.txt').write_text('Dear all,\nno puzzle today\n')
    calls = {
        'Own lists are solved by: reasonnb solve': ['benchmark', 'weights.txt'],
        'a PNG image': ['solve', 'image.png'],
        'is not a solver made by `ship`': ['solve', '--checkpoint', 'weights.txt', '5' * 81],
        'holds no puzzle': ['solve', 'prose.txt'],
    }
    for message, words in calls.items():
        done = CliRunner().invoke(app, [str(tmp_path / w) if '.' in w and len(w) < 20 else w for w in words])
        assert done.exit_code and message in done.stderr
        assert done.stderr.count('\n') <= 2 and 'Traceback' not in done.stderr
