"The first page: short, its picture plays without scripts, and what others report has a source."
import csv
from xml.etree import ElementTree

from toy import REPO


def test_the_readme_is_short_and_shows_no_code():
    lines = (REPO / 'README.md').read_text(encoding='utf-8').splitlines()
    assert len(lines) <= 150
    assert not [line for line in lines if line.startswith(('import ', 'from reasonnb', 'Traceback'))]


def test_the_picture_plays_by_itself():
    path = REPO / 'figures/readme/search.svg'
    text = path.read_text(encoding='utf-8')
    root = ElementTree.fromstring(text)
    assert path.stat().st_size < 1_000_000
    assert '<script' not in text and text.count('http') == 1, 'GitHub runs no scripts and loads nothing from elsewhere'
    assert '@keyframes' in text and 'prefers-color-scheme:dark' in text and root.find('{*}title').text


def test_every_number_of_others_has_a_source():
    with open(REPO / 'data/peers.csv', encoding='utf-8', newline='') as file: rows = list(csv.DictReader(file))
    assert {row['task'] for row in rows} == {'sudoku', 'mnist'}
    for row in rows: assert all(row.values()) and row['source'].startswith('https://'), row['method']
