"Code that can be read at one go: short lines, no nested conditionals, no loops whose work hides at the end of a line."
import ast
import importlib
import re
from pathlib import Path

import nbformat
import pytest

from reasonnb.lab import catalogue

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
SCRIPTS = sorted([*(ROOT/'tests').glob('*.py'), *(ROOT/'benchmarks').glob('*.py'), ROOT/'conftest.py', ROOT/'setup.py'])
WIDTH = 120  # columns


def pieces(path):
    "Place, source and whether it is exported, of each piece of code in a file."
    if path.suffix == '.py':
        yield path.name, path.read_text(), False
        return
    for place, cell in enumerate(nbformat.read(path, as_version=4).cells):
        if cell.cell_type != 'code': continue
        exported = re.search(r'^#\|\s*export', cell.source, re.M) is not None
        yield f'cell {place}', re.sub(r'^(\s*)[%!].*$', r'\1pass', cell.source, flags=re.M), exported


def hidden_work(loop):
    "A loop on one line that changes something; one that yields or asserts may stay."
    first = loop.body[0]
    if first.lineno != loop.lineno or isinstance(first, ast.Assert | ast.Return | ast.Raise): return False
    return not (isinstance(first, ast.Expr) and isinstance(first.value, ast.Yield | ast.YieldFrom))


def faults(source, exported):
    "Line and fault."
    for number, line in enumerate(source.split('\n'), 1):
        if len(line) > WIDTH: yield number, f'{len(line)} columns'
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.IfExp) and any(isinstance(part, ast.IfExp) for part in (node.body, node.orelse)):
            yield node.lineno, 'a conditional in a conditional'
        if exported and isinstance(node, ast.For) and hidden_work(node): yield node.lineno, 'a loop on one line'


@pytest.mark.parametrize('path', NOTEBOOKS + SCRIPTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_code_can_be_read(path):
    found = [f'{where}, line {line}: {fault}' for where, source, exported in pieces(path)
             for line, fault in faults(source, exported)]
    assert not found, '\n'.join([str(path), *found])


@pytest.mark.parametrize('source, count', [
    ('a = 1 if b else 2', 0), ('a = 1 if b else 2 if c else 3', 1), ('x = ' + '1' * 120, 1),
    ('for a in b: c.append(a)', 1), ('for a in b:\n    c.append(a)', 0), ('def f():\n    for a in b: yield a', 0)])
def test_faults_are_seen(source, count): assert len(list(faults(source, exported=True))) == count


def test_terms_of_the_glossary_live_where_it_says():
    table = nbformat.read(ROOT/'nbs/glossary.ipynb', as_version=4).cells[1].source
    terms = re.findall(r'^\| \*\*(.+?)\*\* \| (.+?) \| `(.+?)` \|$', table, re.M)
    assert len(terms) == len(table.split('\n')) - 2 >= 20
    for _, _, where in terms:
        module, _, name = where.rpartition('.')
        assert hasattr(importlib.import_module(f'reasonnb.{module}'), name), where


def test_every_experiment_has_a_title():
    assert [slug for slug in catalogue.experiments() if catalogue.title(slug) == slug] == []
