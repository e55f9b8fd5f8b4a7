"The order of the folders: who may import whom, and numbers that say in which order."
import ast
import re

import nbformat
import pytest

import renumber

RANK = {'core': 0, 'nn': 1, 'sudoku': 2, 'images': 2, 'text': 2, 'systems': 3, 'lab': 4}
LIBRARY = [path for folder in renumber.folders() for path in sorted(folder.glob('*.ipynb'))]
MODULES = sorted(path for path in (renumber.ROOT/'reasonnb').rglob('*.py') if path.parent.name != 'reasonnb')


def room(parts):
    "('systems', 'looped') of a system, ('sudoku',) of any other folder."
    return tuple(parts[:2]) if parts[0] == 'systems' else tuple(parts[:1])


def allowed(here, there):
    "Folders below, and the own one; two folders of one rank do not know each other."
    return here == there or RANK[there[0]] < RANK[here[0]]


def imported(source, package):
    "Folders of reasonnb that a piece of code imports; `package` is where it stands, for relative imports."
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import): names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            above = package[:len(package) - node.level + 1] if node.level else []
            base = '.'.join([*above, *([node.module] if node.module else [])])
            names = [f'{base}.{alias.name}' for alias in node.names]
        for name in names:
            parts = name.split('.')
            if parts[0] == 'reasonnb' and len(parts) > 1 and parts[1] in RANK: yield room(parts[1:])


@pytest.mark.parametrize('path', LIBRARY, ids=lambda path: path.relative_to(renumber.NBS).as_posix())
def test_a_notebook_imports_what_is_below_it(path):
    here = room(path.parent.relative_to(renumber.NBS).parts)
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != 'code': continue
        source = re.sub(r'^\s*[%!].*$', '', cell.source, flags=re.M)
        wrong = {there for there in imported(source, []) if not allowed(here, there)}
        assert not wrong, f'{path.name} imports {wrong}'


@pytest.mark.parametrize('path', MODULES, ids=lambda path: path.relative_to(renumber.ROOT).as_posix())
def test_a_module_imports_what_is_below_it(path):
    package = ['reasonnb', *path.parent.relative_to(renumber.ROOT/'reasonnb').parts]
    here = room(package[1:])
    wrong = {there for there in imported(path.read_text(), package) if not allowed(here, there)}
    assert not wrong, f'{path} imports {wrong}'


def test_an_arrow_that_runs_back_is_seen():
    seen = list(imported('from ..lab.results import runs\nimport reasonnb.systems.lattice.search', ['reasonnb', 'nn']))
    assert seen == [('lab',), ('systems', 'lattice')]
    assert not any(allowed(('nn',), there) for there in seen)
    assert not allowed(('systems', 'looped'), ('systems', 'lattice')) and not allowed(('images',), ('sudoku',))
    assert allowed(('systems', 'looped'), ('nn',)) and allowed(('lab',), ('systems', 'looped'))


def test_numbers_are_the_order_of_imports():
    assert renumber.renamed() == {}, 'python tests/renumber.py'
