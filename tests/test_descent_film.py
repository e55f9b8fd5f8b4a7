"Films of a descent: what a page holds and shows, with and without scripts, and the landscape of an energy."
import base64
import re
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from reasonnb.core.config import UserError
from reasonnb.lab.pages import output
from reasonnb.sudoku.board import BoardShape, is_solved
from reasonnb.sudoku.generator import generate
from reasonnb.sudoku.soft_boards import SETTLED, broken_units, clashes, show_soft
from reasonnb.systems.descent.board_energy import BoardEnergy
from reasonnb.systems.descent.chains import Solved, descend
from reasonnb.systems.descent.film import LIMIT, film, heights, reel, unpacked
from reasonnb.systems.descent.landscape import answers, as_soft, barriers, energies_at, line, lines_between, plane

SHAPES = [BoardShape(2, 2), BoardShape(3, 2), BoardShape(3, 3), BoardShape(4, 4)]
SOLVED = {}


def puzzles_of(box, n=2):
    if box.N < 16: return map(torch.as_tensor, generate(n, box, seed=4))
    cells = np.arange(box.cells)
    solution = (box.cols * (box.row % box.rows) + box.row // box.rows + box.col) % box.N + 1
    assert is_solved(solution[None], box).all()
    puzzle = np.where(cells % 3 == 0, solution, 0)
    return torch.as_tensor(np.stack([puzzle] * n)), torch.as_tensor(np.stack([solution] * n))


def made(box=BoardShape(3, 3), steps=100, chains=8, noise=0., wrong=(1,)):
    "A descent by hand: chains go from noise to the solution, those in `wrong` to a board with two digits exchanged."
    key = (box, steps, chains, noise, wrong)
    if key in SOLVED: return SOLVED[key]
    puzzles, solutions = puzzles_of(box)
    ends, rng = solutions[:, None].repeat(1, chains, 1).long(), torch.Generator().manual_seed(0)
    for puzzle, clues in enumerate(puzzles):
        a, b = (clues == 0).nonzero().flatten()[[0, -1]]
        for chain in wrong: ends[puzzle, chain, [a, b]] = ends[puzzle, chain, [b, a]]
    time = torch.linspace(0, 1, steps + 1)[:, None, None, None, None]
    random = torch.randn(2, chains, box.cells, box.N, generator=rng)
    u = 14 * time * F.one_hot(ends - 1, box.N) + random * (1 - time)
    if noise: u = u + noise * torch.randn(u.shape, generator=rng)
    true = F.one_hot(solutions.long() - 1, box.N)[:, None].float()
    q = torch.where((puzzles > 0)[:, None, :, None], true, u.softmax(-1))
    falls = 60 * (1 - time[..., 0, 0]) ** 4 + (ends != solutions[:, None]).any(-1) * 5. - .01 * torch.arange(chains)
    rows, chosen = torch.arange(2), falls[-1].argmin(1)
    boards = ends[rows, chosen]
    SOLVED[key] = Solved(boards=boards, solved=(boards == solutions).all(-1), energies=falls[-1], chosen=chosen,
                         chains=ends, certainty=q[-1].amax(-1).mean(-1), trajectory=q, falls=falls)
    return SOLVED[key]


@pytest.mark.parametrize('box', SHAPES, ids=str)
def test_a_film_keeps_what_it_was_given(box):
    solved = made(box, steps=12, chains=3)
    cut = reel(solved, 1, box=box)
    puzzles, _ = puzzles_of(box)
    assert np.array_equal(cut.given, puzzles[1])
    assert np.array_equal(unpacked(cut.packed(), cut.roots.shape), cut.roots)
    expected = solved.trajectory[:, 1].transpose(0, 1).numpy()
    assert np.abs(np.sqrt(cut.shares()) - np.sqrt(expected)).max() <= .5 / 255 + 1e-6
    assert np.array_equal(cut.shares().argmax(-1)[:, -1] + 1, solved.chains[1])
    assert np.allclose(cut.energies, solved.falls[:, 1].T)
    assert cut.names[cut.chosen] == int(solved.chosen[1])
    assert film(solved, 1, box=box).html()


def test_chosen_chain_is_always_shown():
    solved = made(steps=6)
    assert int(solved.chosen[0]) == 7
    assert reel(solved, 0, chains=3).names.tolist() == [0, 1, 7]
    assert reel(solved, 0, chains=3).chosen == 2
    assert reel(solved, 0, chains=1).names.tolist() == [7]
    assert reel(solved, 0, every=4).times.tolist() == [0, 4, 6]


def test_a_page_stays_small():
    "A 9x9 board of 100 steps and 8 chains; with noise at every step, steps are left out."
    found = film(made())
    assert len(found.html().encode()) < .9 * LIMIT and len(found.reel.times) == 101
    noisy = film(made(noise=.6))
    assert len(noisy.html().encode()) <= LIMIT and 20 < len(noisy.reel.times) < 101
    assert noisy.reel.times[0] == 0 and noisy.reel.times[-1] == 100
    assert film(made(noise=.6), chains=1).reel.times.tolist() == list(range(101))


def test_a_page_loads_nothing_and_is_the_same_again():
    page = film(made(steps=20)).html()
    without = re.sub(r'(base64,|"data":")[A-Za-z0-9+/=]*', '', page)
    assert not re.findall(r'https?:|//|\bsrc="(?!data:)|@import|url\(|fetch\(|import\(', without)
    assert '\n' not in page and page == film(made(steps=20)).html()
    script = page.split('<script>')[1].removesuffix('</script></div>')
    assert not set('<&') & set(script)


def test_a_still_stands_where_no_script_runs():
    found = film(made(steps=20))
    before = found.html().split('<script>')[0]
    assert 'Run this cell to play' in before and '<canvas' not in before and '<svg' not in before
    image = base64.b64decode(before.split('base64,')[1].split('"')[0]).decode()
    drawn = ElementTree.fromstring(image)
    texts = [e.text or '' for e in drawn.iter() if e.tag.endswith('text')]
    assert sum(t.startswith('step ') for t in texts) == 4 and any('8 chains' in t for t in texts)
    assert len(image) < 60_000
    paper = found.still()._repr_mimebundle_()
    assert paper['image/svg+xml'] == image and 'no digit stands twice' in paper['text/plain']
    assert str(found) == found.still().text


def test_the_site_shows_the_film_and_of_a_still_the_drawing():
    def shown(one, kept):
        told = dict(output_type='display_data', data=one._repr_mimebundle_())
        keep = lambda raw, ending: kept.append((raw, ending)) or 'picture.svg'
        return output(told, lambda text: text, keep, 'a film')
    found, kept = film(made(steps=20)), []
    assert found.html() in shown(found, kept) and not kept
    assert shown(found.still(), kept) == '![a film](picture.svg)' and kept[0][1] == 'svg'


def test_clashes_are_those_of_the_rules():
    shares = made(steps=4).trajectory[-1, 0].numpy()
    box = BoardShape(3, 3)
    broken = broken_units(shares, box)
    assert broken[1] > 0 and not broken[[0, *range(2, 8)]].any()
    digits = shares[1].argmax(-1)
    pairs = clashes(shares[1], box)
    assert len(pairs) and all(digits[a] == digits[b] and b in box.peers[a] for a, b in pairs)
    assert '#D55E00' in show_soft(shares[1:2]).svg and '#D55E00' not in show_soft(shares[:1]).svg


def test_heights_keep_the_order_and_ticks_their_place():
    energies = np.array([[50., 0., -40.], [60., 2., -39.9]])
    scaled, ticks = heights(energies)
    assert scaled.min() == 0 and scaled.max() == 1
    assert np.array_equal(scaled.ravel().argsort(), energies.ravel().argsort())
    assert [name for _, name in ticks] == ['0', '1', '10', '100'] and ticks == sorted(ticks)
    flat, _ = heights(np.ones((2, 3)))
    assert not flat.any()


@pytest.mark.parametrize('settings, words', [
    (dict(puzzle=2), 'puzzle 2: there are puzzles 0 to 1'), (dict(puzzle=-1), 'puzzle -1'),
    (dict(chains=0), 'chains=0'), (dict(every=-1), 'every=-1'), (dict(seconds=0.), 'seconds=0'),
    (dict(seconds=float('nan')), 'seconds=nan'), (dict(box=BoardShape(2, 2)), '81 cells, a board of 2x2 boxes has 16')])
def test_requests_that_make_no_sense(settings, words):
    with pytest.raises(UserError, match=words) as found: film(made(steps=6), **settings)
    assert '\n' not in str(found.value)


def test_a_way_that_was_not_kept():
    lost = made(steps=6)._replace(trajectory=None, falls=None)
    with pytest.raises(UserError, match='did not keep its way'): film(lost)


def test_boards_of_another_shape_are_refused():
    with pytest.raises(UserError, match=r'\(36, 6\)'): show_soft(np.full((36, 6), 1 / 6))
    with pytest.raises(UserError, match='2 titles for 1 boards'): show_soft(np.full((1, 36, 6), 1 / 6), ['a', 'b'])


@pytest.fixture
def page(chromium, tmp_path):
    "Opens a film; errors of the script are collected in `page.errors`."
    opened = []

    def open_film(found, **settings):
        view = chromium.new_page(**settings)
        view.errors, view.asked = [], []
        view.on('pageerror', lambda e: view.errors.append(str(e)))
        view.on('request', lambda r: view.asked.append(r.url))
        (tmp_path / 'film.html').write_text(f'<!doctype html><meta charset=utf-8>{found.html()}', encoding='utf-8')
        view.goto((tmp_path / 'film.html').as_uri())
        view.locator('.rn-facts b', has_text=re.compile('.')).first.wait_for()
        opened.append(view)
        return view
    yield open_film
    for view in opened: view.close()


def facts(view):
    return [text.replace('−', '-') for text in view.locator('.rn-facts b').all_inner_texts()]


@pytest.mark.browser
def test_the_script_shows_what_python_computes(page):
    found = film(made(BoardShape(3, 2), steps=10, chains=3), 1, box=BoardShape(3, 2))
    view, cut = page(found, reduced_motion='reduce'), found.reel
    shares, blank = cut.shares(), cut.given == 0
    for chain in (1, 0, 2):
        view.locator('.rn-chains button').nth(chain).click()
        for frame in (0, 4, 7, 10):
            view.eval_on_selector('input', f'e => {{e.value = {frame}; e.oninput()}}')
            settled = (shares[chain, frame][blank].max(-1) > SETTLED).sum()
            broken = broken_units(shares[chain, frame], cut.box)
            energy = f'{cut.energies[chain, frame]:.2f}'
            assert facts(view) == [str(frame), energy, str(settled), str(broken)]
    signs = [text[0] for text in view.locator('.rn-chains span').all_inner_texts()]
    assert signs == ['✓', '✗', '✓'] and 'Solved' in view.locator('.rn-fall p').inner_text()
    assert not view.errors and not [url for url in view.asked if not url.startswith(('file:', 'data:', 'blob:'))]


@pytest.mark.browser
def test_the_film_has_its_keys_and_respects_a_wish_for_less_motion(page):
    view = page(film(made(steps=10, chains=2)), reduced_motion='reduce')
    view.wait_for_timeout(700)
    assert facts(view)[0] == '0', 'no film begins by itself'
    view.locator('.rn-fall input').focus()
    for key, step in (('ArrowRight', 1), ('ArrowRight', 2), ('ArrowLeft', 1), ('End', 10), ('Home', 0), ('ArrowUp', 1)):
        view.keyboard.press(key)
        assert facts(view)[0] == str(step)
    view.keyboard.press('2')
    assert view.locator('.rn-chains button').nth(1).get_attribute('aria-pressed') == 'true'
    view.keyboard.press('Space')
    view.locator('.rn-bar button', has_text='pause').wait_for()
    view.locator('.rn-facts b', has_text=re.compile('^3$')).first.wait_for()
    view.keyboard.press('ArrowRight')
    assert 'play' in view.locator('.rn-bar button').inner_text(), 'a key stops the film'
    assert not view.errors


@pytest.mark.browser
@pytest.mark.parametrize('width', [360, 1000])
def test_the_film_plays_by_itself_and_fits_the_page(page, width):
    view = page(film(made(steps=10, chains=4), seconds=1.), viewport=dict(width=width, height=900))
    view.locator('.rn-facts b', has_text=re.compile('^10$')).first.wait_for()
    view.locator('.rn-bar button', has_text='play').wait_for()
    inked = '''c => {const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
               let n = 0; for (let i = 3; i < d.length; i += 4) {n += d[i] > 0}; return n / (c.width * c.height)}'''
    for canvas in view.locator('.rn-fall canvas').all(): assert canvas.evaluate(inked) > .02
    assert view.evaluate('document.documentElement.scrollWidth') <= width and not view.errors


@pytest.fixture(scope='module')
def energy():
    "Weights that nobody trained, with a puzzle, its solution and two other boards."
    torch.manual_seed(0)
    (puzzle, *_), (solution, *_) = puzzles_of(BoardShape(2, 3))
    others = [torch.where(puzzle > 0, solution, (solution + k) % 6 + 1) for k in (0, 1)]
    return BoardEnergy(), puzzle, solution, others


def test_a_line_goes_through_the_boards_at_its_ends(energy):
    model, puzzle, solution, (other, _) = energy
    found = line(model, puzzle, solution, other, points=11, beyond=.2)
    assert np.allclose(found.t, np.linspace(-.2, 1.2, 15), atol=1e-6)
    both = torch.stack([as_soft(board, BoardShape(2, 3)) for board in (solution, other)])
    expected = model(puzzle[None].expand(2, -1), both).detach()
    torch.testing.assert_close(torch.tensor(found.energy[[2, 12]].to_numpy()), expected.double(), atol=1e-4, rtol=1e-4)
    back = line(model, puzzle, other, solution, points=11, beyond=.2)
    assert np.allclose(found.energy, back.energy[::-1], atol=1e-4)
    noted = both[:1].clone()
    noted[0, puzzle > 0] = .5  # what a board says of clues is not read
    torch.testing.assert_close(energies_at(model, puzzle, noted), energies_at(model, puzzle, both[:1]))


def test_the_landscape_has_no_jump_where_shares_become_negative(energy):
    model, puzzle, solution, (other, _) = energy
    energies = line(model, puzzle, solution, other, points=2_001, beyond=.005).energy
    assert energies.diff().abs().max() < .05 * (energies.max() - energies.min())


def test_lines_barriers_and_plane_agree(energy):
    model, puzzle, solution, (second, third) = energy
    boards = dict(solution=solution, second=second, third=third)
    lines = lines_between(model, puzzle, boards, points=21, beyond=.1)
    table = barriers(lines)
    assert list(zip(table.start, table.end)) == [('solution', 'second'), ('solution', 'third'), ('second', 'third')]
    assert (table.differ == int((puzzle == 0).sum())).all() and (table.barrier >= 0).all()
    found = plane(model, puzzle, boards, points=9, beyond=0.)
    corners = found.attrs['corners']
    assert isinstance(found, pd.DataFrame) and len(found) == 81 and corners['solution'] == (0., 0.)
    for name, (x, y) in corners.items():
        nearest = found.loc[np.hypot(found.x - x, found.y - y).idxmin()]
        if np.hypot(nearest.x - x, nearest.y - y) > 1e-4: continue  # the third corner lies between grid lines
        expected = float(energies_at(model, puzzle, as_soft(boards[name], BoardShape(2, 3))[None]))
        assert abs(nearest.energy - expected) < 1e-2


def test_answers_are_sorted_by_energy():
    solved = made(steps=4)
    found = answers(solved, 0)
    assert list(found) == ['A (7 of 8 chains)', 'B (1 of 8 chains)']
    assert torch.equal(found['A (7 of 8 chains)'].argmax(-1) + 1, solved.boards[0])
    hard = answers(solved._replace(trajectory=None), 0)
    assert torch.equal(hard['B (1 of 8 chains)'], solved.chains[0, 1])


def test_landscapes_that_make_no_sense(energy):
    model, puzzle, solution, (other, third) = energy
    cases = [(lambda: line(model, puzzle, solution, solution), 'same board'),
             (lambda: line(model, puzzle, solution, other, points=1), 'points=1'),
             (lambda: line(model, puzzle, solution[:30], other), r'\(30,\)'),
             (lambda: line(model, puzzle, puzzle, other), 'digits from 0'),
             (lambda: lines_between(model, puzzle, dict(one=solution)), 'a line needs two'),
             (lambda: plane(model, puzzle, dict(one=solution, two=other)), '2 boards'),
             (lambda: plane(model, puzzle, dict(one=solution, two=other, three=other)), 'on one line'),
             (lambda: answers(made(steps=4), 5), 'puzzle 5')]
    for call, words in cases:
        with pytest.raises(UserError, match=words): call()


def test_a_film_of_a_real_descent_of_one_step():
    puzzles, _ = puzzles_of(BoardShape(2, 2))
    torch.manual_seed(0)
    found = film(descend(BoardEnergy(), puzzles, chains=1, steps=1, keep=True), 1)
    assert found.reel.times.tolist() == [0, 1] and 'after 1 step of' in str(found)
