"""A verdict and its narrative do not disagree: prose and tables of the narratives against the ledger that git keeps.

The rule for an author. What became of a claim is computed: by `Narrative.closing`, `verdict_table` or
`Narrative.verdict`, which take it from the ledger, or in a sentence that `comparisons.tells` chooses by the records.
Whoever types it all the same names the claim behind it, as in *contradicted* (`st_rope_same`), and then it is compared.
The words of the ledger have no second meaning in a narrative: what holds something *keeps* or *contains* it, a rule
that holds elsewhere *is true* there, numbers of a log *clash*. A word that is only mentioned stands in backticks."""
import ast
import json
import re

import pandas as pd
import pytest

from reasonnb.lab.catalogue import root
from reasonnb.lab.verdicts import VERDICTS

LEDGER = pd.read_csv(root()/'figures/ledger.csv', keep_default_na=False).set_index('claim_id')
NARRATIVES = sorted(path for log in set(LEDGER['log']) for path in (root()/'nbs/logs'/log).glob('*.ipynb'))

MEANT = dict.fromkeys(('contradicted', 'refuted', 'disproved', 'disproven'), 'contradicted') \
    | dict.fromkeys(('hold', 'holds', 'confirmed', 'borne out'), 'holds') \
    | {word: word for word in ('undecided', 'smaller than claimed', 'cannot show', 'not run')}
AFTER = 'here|too|for|as|at|by|in|on|only|true|there|with|against|up to'  # what may follow *holds* without an object
WORD = re.compile(rf'''(?<![\w`])(?:
      (?P<plain>contradicted|refuted|disproved|disproven|confirmed|borne\ out|undecided|smaller\ than\ claimed)(?![\w`])
    | (?P<holds>holds?)(?=[*_"]*(?:\s*$|[.,;:!?)]|\s+(?:(?:{AFTER})\b|\(`)))
    | (?<=[*_])(?P<strong>holds?|cannot\ show)(?=[*_])
    | (?P<named>cannot\ show|not\ run)(?=[*_]*\s+\(`)
    )''', re.I | re.M | re.X)
CLAIMS = re.compile(r'[*_]*\s+\((`\w+`(?:(?:,| and)\s+`\w+`)*)\)')


def faults(text, verdicts):
    "What is wrong with the verdicts that a text names; `verdicts` is claim -> verdict."
    for word in WORD.finditer(text):
        said = ' '.join(word[0].split())
        place = text[max(0, word.start() - 40):word.end() + 20].replace('\n', ' ')
        named = CLAIMS.match(text, word.end())
        if not named: yield f'{said!r} of no claim: ... {place} ...'
        for claim in re.findall(r'`(\w+)`', named[1]) if named else ():
            found = verdicts.get(claim, 'no such claim')
            if found != MEANT[said.lower()]: yield f'{said!r} of {claim}, {found} by the ledger'


def typed(code):
    "Texts that a code cell says: no docstrings, no words that are data, no sentences that the records choose."
    tree = ast.parse(re.sub(r'^(\s*)[%!].*$', r'\1pass', code, flags=re.M))
    chosen = {part for node in ast.walk(tree) if isinstance(node, ast.Call)
              and getattr(node.func, 'attr', getattr(node.func, 'id', '')) == 'tells' for part in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr): chosen |= {part for part in node.values if _counts(node, part)}
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node): chosen.add(node.body[0].value)
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in chosen
        if is_text and node.value.strip('* ') not in VERDICTS: yield node.value


def _counts(joined, part):
    "Is it the end of a number that is computed, as in `{n} hold`?"
    at = joined.values.index(part)
    return at > 0 and isinstance(part, ast.Constant) and re.match(r'\s+(hold|undecided|contradicted)\b', part.value)


def texts(notebook):
    "Number of each cell with a text in it."
    for number, cell in enumerate(notebook['cells']):
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown': yield number, source
        if cell['cell_type'] == 'code': yield from ((number, text) for text in typed(source))


def tables(notebook):
    "Claim and verdict of each row of the tables of verdicts that a notebook keeps."
    outputs = [output for cell in notebook['cells'] for output in cell.get('outputs', ())]
    for text in (''.join(output.get('data', {}).get('text/markdown', '')) for output in outputs):
        heads = None
        for line in text.split('\n'):
            cells = [cell.strip() for cell in re.split(r'(?<!\\)\|', line)[1:-1]]
            if 'claim of the log' in cells: heads = cells
            if heads and len(cells) == len(heads) and not cells[0].startswith('-') and cells != heads:
                row = dict(zip(heads, cells))
                yield row['claim of the log'].replace('\\|', '|'), row['verdict'].strip('*')
            if not cells: heads = None


@pytest.mark.parametrize('path', NARRATIVES, ids=lambda path: f'{path.parent.name}/{path.stem}')
def test_prose_says_of_a_claim_what_the_ledger_says(path):
    wrong = [f'cell {number}: {fault}' for number, text in texts(json.loads(path.read_text()))
             for fault in faults(text, dict(LEDGER['verdict']))]
    assert not wrong, '\n'.join([str(path), *wrong])


@pytest.mark.parametrize('path', NARRATIVES, ids=lambda path: f'{path.parent.name}/{path.stem}')
def test_tables_that_a_narrative_keeps_are_those_of_the_ledger(path):
    mine = LEDGER[LEDGER['log'] == path.parent.name]
    if (mine['verdict'] == 'not run').mean() > .5: pytest.xfail(f'the records of {path.parent.name} are made anew')
    verdicts = dict(zip(mine['statement'], mine['verdict']))
    kept = tables(json.loads(path.read_text()))
    wrong = [f'{claim} {verdict}, by the ledger {verdicts.get(claim)}' for claim, verdict in kept
             if verdicts.get(claim) != verdict]
    assert not wrong, '\n'.join([f'make narratives: {path}', *wrong])


def test_a_claim_has_a_statement_of_its_own():
    "Else a row of a table could not be told from another one."
    assert not LEDGER.reset_index().duplicated(['log', 'statement']).any()


WORLD = {'a_1': 'holds', 'a_2': 'contradicted', 'a_3': 'undecided', 'a_4': 'cannot show', 'a_5': 'smaller than claimed'}


@pytest.mark.parametrize('text', [
    '*Contradicted*, and by a wide margin.', 'All four are undecided.', 'Refuted is that it is best.',
    '**Verdict.** *Holds*: no board.', 'Both hold, by a distance.', "The log's claim holds here.",
    'It holds\nand ends.',
    'So it *cannot show* that.', 'an effect smaller than claimed', 'the finding is borne out',
    'contradicted (`a_1`)', 'holds (`a_2`)', 'holds (`a_1`, `a_2`)', 'undecided (`a_6`)', '*cannot show* (`a_1`)',
    'not run (`a_1`)', 'undecided (see below)', 'undecided `a_3`'])
def test_a_verdict_that_is_typed_is_seen(text): assert list(faults(text, WORLD))


@pytest.mark.parametrize('text', [
    'holds (`a_1`)', '*Contradicted* (`a_2`), and by a wide margin.', 'is **undecided**\n(`a_3`)',
    'Both hold (`a_1` and `a_1`).',
    'runs *cannot show* (`a_4`)', 'smaller than claimed (`a_5`)', 'refuted (`a_2`)', 'confirmed (`a_1`)',
    'A block holds the weights.', 'what a laptop cannot show', 'It was not run here.',
    'two numbers contradict each other',
    'the log holds that it helps', 'threshold', 'Held or changed', 'the column `undecided`', 'holdout'])
def test_other_words_and_agreement_are_let_pass(text): assert list(faults(text, WORLD)) == []


@pytest.mark.parametrize('code, seen', [
    ("markdown('All are undecided.')", True), ("f'''{a} of boards: contradicted.'''", True),
    ("page.closing('x', finding='The claim holds.')", True),
    ("kinds = ['holds', '**undecided**']", False), ("tells(page, a, b, unsure='it is undecided')", False),
    ("page.tells(a, b, more=f'{x}: refuted')", False), ("f'{n} hold.'", False), ("f'{name} is undecided'", True),
    ("f'of {n} claims {page.verdict(claim)}'", False), ("def f(): 'What a blank holds.'", False)])
def test_code_is_read_as_prose_where_it_says_something(code, seen):
    assert any(list(faults(text, WORLD)) for text in typed(code)) == seen


def test_rows_of_a_table_are_read():
    table = ['**Finding.** a | b', '', '| claim of the log | tested | verdict |', '|---|---|---|',
             '| A \\| B holds. | boards | **holds** |', '| C. | x | **not run** |', '', '| other | table | here |']
    cell = {'outputs': [{'data': {'text/markdown': [f'{line}\n' for line in table]}}]}
    assert list(tables({'cells': [cell]})) == [('A | B holds.', 'holds'), ('C.', 'not run')]
