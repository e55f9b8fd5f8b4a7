"The docs site: every notebook has a page, links lead somewhere, nothing is fetched from elsewhere, a browser opens it."
import base64
import functools
import http.server
import io
import json
import os
import re
import shutil
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pandas as pd
import pytest

from reasonnb.core.config import UserError
from reasonnb.lab import claims, site

ROOT = Path(__file__).resolve().parents[1]
NARRATIVE = 'logs/sudoku_transformer/99_example'
PAGE = 'logs/sudoku_transformer/example.html'


def notebook(*cells):
    "A notebook file: text is prose, a pair is code with its outputs."
    def cell(number, c):
        if isinstance(c, str): return dict(cell_type='markdown', id=str(number), metadata={}, source=c)
        return dict(cell_type='code', id=str(number), metadata={}, execution_count=None, source=c[0], outputs=c[1])
    return json.dumps(dict(cells=[cell(i, c) for i, c in enumerate(cells)], metadata={}, nbformat=4, nbformat_minor=5))


def shown(**data):
    return dict(output_type='display_data', metadata={}, data={k.replace('_', '/'): v for k, v in data.items()})


def picture():
    from matplotlib.figure import Figure
    Figure(figsize=(4, 2)).savefig(file := io.BytesIO(), dpi=50)
    return base64.b64encode(file.getvalue()).decode()


def example():
    wide = pd.DataFrame({f'a rather wide column {i}': [i, 2*i] for i in range(12)})
    question = ('## Question\nDoes $\\hat y^{(t)}$ help?\n\n'
                '$$\\mathcal{L} = -\\frac{1}{T}\\sum_{t=1}^T \\log p(y \\mid \\hat y^{(t)})$$\n\n'
                'See `lr_at`, [the schedules](../../core/01_schedules.ipynb) '
                'and [the claims](../../../data/logs/claims.csv).')
    return notebook(
        '# Example\n> A page with one of everything.',
        question,
        ('plot()', [shown(image_png=picture())]),
        ('wide', [shown(text_html=wide.to_html(), text_plain='wide')]),
        ('print(1)', [dict(output_type='stream', name='stdout', text='50%\r100%\nprinted\n')]),
    )


@pytest.fixture(scope='module')
def repo(tmp_path_factory):
    "A copy of what the site is made from, with an example narrative more."
    copy = tmp_path_factory.mktemp('repo')
    for name in ('settings.ini', 'mkdocs.yml'): shutil.copy(ROOT/name, copy)
    no_hidden_files = shutil.ignore_patterns('.*')
    for name in ('nbs', 'figures', 'data/logs'): shutil.copytree(ROOT/name, copy/name, ignore=no_hidden_files)
    for file in ROOT.glob('*.md'): shutil.copy(file, copy)
    (copy/f'nbs/{NARRATIVE}.ipynb').parent.mkdir(parents=True, exist_ok=True)
    (copy/f'nbs/{NARRATIVE}.ipynb').write_text(example())
    return copy


@pytest.fixture(scope='module')
def ledger():
    "The verdicts of the real records."
    return claims.ledger()


@pytest.fixture(scope='module')
def built(repo, ledger):
    "The site of that copy."
    before = os.environ.get('REASONNB_ROOT')
    os.environ['REASONNB_ROOT'] = str(repo)
    try: return site.build(ledger=ledger)
    finally: os.environ.pop('REASONNB_ROOT') if before is None else os.environ.update(REASONNB_ROOT=before)


CODE = re.compile(r'<!--.*?-->|(<(script|style)\b[^>]*>).*?</\2>', re.S)
TAG = re.compile(r'<[a-z](?:[^>"\']|"[^"]*"|\'[^\']*\')*>', re.I)


@functools.cache
def parsed(tag):
    "Name and attributes of a tag. Most tags, those of the side bar, stand on hundreds of pages."
    parser, found = HTMLParser(), []
    parser.handle_starttag = lambda *both: found.extend(both)
    parser.feed(tag)
    return found[0], dict(found[1])


class Seen:
    "The addresses, identities and assets of one page."
    def __init__(self, text):
        self.links, self.assets, self.ids = [], [], set()
        for tag in dict.fromkeys(TAG.findall(CODE.sub(r'\1', text))): self.see(*parsed(tag))

    def see(self, tag, attrs):
        self.ids |= {attrs.get('id'), attrs.get('name')}
        if tag == 'a' and attrs.get('href'): self.links.append(attrs['href'])
        if tag in ('script', 'img', 'iframe', 'source', 'video') and attrs.get('src'): self.assets.append(attrs['src'])
        if tag == 'link' and attrs.get('href') and attrs.get('rel') != 'canonical': self.assets.append(attrs['href'])


@pytest.fixture(scope='module')
def pages(built): return {p.relative_to(built).as_posix(): Seen(p.read_text()) for p in built.rglob('*.html')}


def test_every_notebook_has_a_page(repo, pages):
    wanted = {site.Page(p.relative_to(repo/'nbs')).path.with_suffix('.html').as_posix()
              for p in (repo/'nbs').rglob('*.ipynb') if not any(part[0] in '._' for part in p.relative_to(repo).parts)}
    assert wanted | {'claims.html', '404.html'} == set(pages)


def test_no_link_is_dead(built, pages):
    dead = []
    for name, page in pages.items():
        if name == '404.html': continue  # served for any address, so its links are absolute
        for link in page.links + page.assets:
            if urlsplit(link).scheme in ('http', 'https', 'mailto', 'data'): continue
            path, _, anchor = urljoin(f'/{name}', unquote(link)).lstrip('/').partition('#')
            if not (built/path).is_file(): dead.append(f'{name} -> {link}')
            elif anchor and path in pages and anchor not in pages[path].ids: dead.append(f'{name} -> {link}')
    assert not dead
    assert sum(len(page.links) for page in pages.values()) > 100


def test_nothing_is_fetched_from_elsewhere(built, pages):
    assert not [(name, a) for name, page in pages.items() for a in page.assets if urlsplit(a).netloc]
    from_elsewhere = re.compile(r'(url\(|@import)\s*["\']?(https?:)?//')
    for style in built.rglob('*.css'): assert not from_elsewhere.search(style.read_text()), style


def test_links_to_symbols_and_files(built, pages):
    links = pages[PAGE].links
    assert '../../core/schedules.html#lr_at' in links and '../../core/schedules.html' in links
    assert (built/'files/data/logs/claims.csv').read_bytes() == (ROOT/'data/logs/claims.csv').read_bytes()
    assert not [link for page in pages.values() for link in page.links if 'reasonnb.github.io' in link]


def test_api_page_tells_parameters(built):
    text = (built/'core/schedules.html').read_text()
    section = text[text.index('id="lr_at"'):]
    assert re.search(r'<td><code>step</code></td>\s*<td><code>int</code></td>\s*<td>optimizer step', section)
    assert '<details class="source">' in section
    assert 'nbdev_export' not in text


def test_the_readme_is_in_step(repo, monkeypatch):
    monkeypatch.setenv('REASONNB_ROOT', str(repo))
    assert site.readme('made.md').read_text() == (ROOT/'README.md').read_text()
    text = (repo/'made.md').read_text()
    links = re.findall(r'\]\(([^)\s#]+)', text) + re.findall(r'(?:src|href)="([^"#]+)"', text)
    local = [to for to in links if not re.match(r'\w+:', to)]
    assert not [to for to in local if not (ROOT/to).exists()]


@pytest.fixture
def small(tmp_path, monkeypatch):
    "The smallest repository with a site."
    for name in ('settings.ini', 'mkdocs.yml'): shutil.copy(ROOT/name, tmp_path)
    (tmp_path/'nbs').mkdir()
    for name in ('sidebar.yml', 'site.js', 'styles.css', 'logo.svg'): shutil.copy(ROOT/'nbs'/name, tmp_path/'nbs')
    (tmp_path/'nbs/index.ipynb').write_text(notebook('# Home\n> A page.'))
    monkeypatch.setenv('REASONNB_ROOT', str(tmp_path))
    return tmp_path


EMPTY = pd.DataFrame(columns=list(claims.LEDGER_COLUMNS))


@pytest.mark.parametrize('text, said', [
    (notebook('No title.'), "must be markdown that begins with '# title'"),
    (notebook('# A\n> B.', '$\\nosuch{x}$'), 'Unknown command'),
    (notebook('# A\n> B.', '[gone](gone.ipynb)'), 'the link to gone.ipynb leads nowhere'),
    (notebook('# A\n> B.', ('show_doc(nothing)', [])), r'show_doc\(nothing\): this notebook does not export it'),
    (notebook('# A\n> B.', '[home](index.ipynb#nowhere)'), 'anchor does not exist'),
    ('{"cells": [', 'bad.ipynb'),
])
def test_a_bad_notebook_is_named(small, text, said):
    (small/'nbs/bad.ipynb').write_text(text)
    with pytest.raises(UserError, match=said) as error: site.build(ledger=EMPTY)
    assert re.search(r'\bbad\.(ipynb|md)', str(error.value)) and '\n' not in str(error.value)
    assert not (small/'_docs').exists()


def test_the_repository_is_only_read(small, tmp_path_factory):
    before, out = set(small.rglob('*')), tmp_path_factory.mktemp('elsewhere')/'deep'/'site'
    assert site.build(str(out), ledger=EMPTY) == out and (out/'index.html').exists()
    assert set(small.rglob('*')) == before and list(out.parent.iterdir()) == [out]


def test_a_folder_of_something_else_is_kept(small):
    (small/'_docs').mkdir()
    (small/'_docs/thesis.txt').write_text('years of work')
    with pytest.raises(UserError, match='is not a site'): site.build(ledger=EMPTY)
    assert (small/'_docs/thesis.txt').exists()


def test_a_missing_tool_is_named(small, monkeypatch):
    find = site.importlib.util.find_spec
    monkeypatch.setattr(site.importlib.util, 'find_spec', lambda name: None if name == 'zensical' else find(name))
    with pytest.raises(UserError, match='the docs need zensical: pip install'): site.build(ledger=EMPTY)


@pytest.fixture(scope='module')
def address(built):
    "The site as served below some path of a web server."
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_): pass
        def translate_path(self, path): return super().translate_path(path.removeprefix('/some/where'))
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(built)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/some/where'
    server.shutdown()


@pytest.fixture(params=['web', 'disk'])
def tab(request, chromium, built):
    "A browser tab that complains about console errors, failed requests and requests to elsewhere."
    base = request.getfixturevalue('address') if request.param == 'web' else built.as_uri()
    context = chromium.new_context(viewport=dict(width=1280, height=900))
    page, wrong = context.new_page(), []
    page.set_default_timeout(15_000)
    page.on('console', lambda m: wrong.append(m.text) if m.type in ('error', 'warning') else None)
    page.on('pageerror', lambda e: wrong.append(str(e)))
    here = (base, 'data:', 'blob:', 'about:')
    page.on('request', lambda r: None if r.url.startswith(here) else wrong.append(f'elsewhere: {r.url}'))
    page.on('response', lambda r: wrong.append(f'{r.status} {r.url}') if r.status >= 400 else None)
    page.on('requestfailed', lambda r: wrong.append(f'failed: {r.url}'))
    page.base = base
    yield page
    context.close()
    assert not wrong


@pytest.mark.browser
def test_a_narrative_in_the_browser(tab):
    tab.goto(f'{tab.base}/{PAGE}')
    assert tab.title().startswith('Example')
    all_loaded = '[...document.images].every(i => i.complete && i.naturalWidth > 50)'
    assert tab.evaluate(f'{all_loaded} && document.images.length') >= 1
    assert tab.locator('article .output table td').count() == 24
    fraction, line = (tab.locator(s).first.bounding_box() for s in ('.formula mfrac', 'article p'))
    assert fraction['height'] > 25 and fraction['height'] > fraction['width']  # stacked, not in a row
    assert tab.evaluate('document.documentElement.scrollWidth <= innerWidth'), 'a wide table scrolls by itself'
    assert tab.locator('article', has_text='printed').count() and not tab.locator('article', has_text='50%').count()
    tab.get_by_role('link', name='the schedules').click()
    tab.wait_for_url('**/core/schedules.html')
    for section in ('Start', 'Logs', 'Core', 'Lab', 'Sudoku'):
        assert tab.locator('.md-nav--primary', has_text=section).count()
    assert tab.locator('.md-sidebar--secondary a', has_text='lr_at').is_visible()


@pytest.mark.browser
def test_search_finds_a_symbol(tab):
    tab.goto(f'{tab.base}/index.html')
    tab.locator('.md-search__button').click()
    tab.keyboard.type('lr_at', delay=20)
    tab.locator('a[href*="core/schedules.html"][href*="#lr_at"]').first.click()
    tab.wait_for_url('**/core/schedules.html*#lr_at')


@pytest.mark.browser
def test_the_ledger_can_be_filtered(tab, ledger):
    tab.goto(f'{tab.base}/claims.html')
    rows = tab.locator('tbody tr:visible')
    assert rows.count() == len(ledger) == len(claims.claims_table())
    for verdict in claims.VERDICTS:
        tab.locator(f'button[data-verdict="{verdict}"]').click()
        assert rows.count() == (ledger['verdict'] == verdict).sum()
    tab.locator('button[data-verdict=""]').click()
    tab.locator('.ledger input').fill('recurrence')
    assert 0 < rows.count() < len(ledger)
