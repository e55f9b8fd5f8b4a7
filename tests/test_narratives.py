"""The narratives against the logs: every section of a finished log has its place."""
import json, re
import pytest
from reasonnb.lab.catalogue import experiments, root, sections

FINISHED = ('sudoku_transformer', 'equilibrium')  # logs whose every section must be told


def told(log:str) -> dict[str, list[str]]: # slug -> narratives with an anchor of that name
    found = {}
    for path in sorted((root()/'nbs'/'logs'/log).glob('*.ipynb')):
        text = '\n'.join(''.join(cell['source']) for cell in json.loads(path.read_text())['cells'] if cell['cell_type'] == 'markdown')
        for slug in re.findall(r'<a id="(\w+)"></a>', text): found.setdefault(slug, []).append(path.name)
    return found


@pytest.mark.parametrize('log', sorted(p.name for p in (root()/'nbs'/'logs').iterdir() if p.is_dir()))
def test_sections_are_told_once_and_none_is_invented(log):
    known = sections()
    known = known[known['log'] == log]  # none for narratives of our own
    slugs, found = set(known['slug']), told(log)
    assert not set(found) - slugs - set(experiments()), 'anchors that are neither a section nor an experiment of ours'
    assert not {slug: places for slug, places in found.items() if len(places) > 1}
    left = [slug for slug in known['slug'] if slug not in found]
    if left and log not in FINISHED: pytest.xfail(f'{len(left)} of {len(slugs)} sections of {log} are not told yet: {" ".join(left)}')
    assert not left
