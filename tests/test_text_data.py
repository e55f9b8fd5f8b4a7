"Text and its tokens: what properties hold for any text, what damage and wrong requests lead to."
import json
import math
import os
import random
import subprocess
import sys
import tarfile
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import tree_sitter
import tree_sitter_rust
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reasonnb.core.config import UserError
from reasonnb.text import corpora, token_batches
from reasonnb.text.corpora import Corpus, Document, Report, load_corpus, split
from reasonnb.text.grammar import Generated, floor, generate, generated_corpus, log_probability, luck
from reasonnb.text.text_config import TextConfig
from reasonnb.text.token_batches import prepare
from reasonnb.text.tokenizer import END, Tokenizer, train_tokenizer

ROOT = Path(__file__).resolve().parents[1]
ARCHIVE = ROOT.parent/'shared/data/rust/rust-1.63-src.tar.xz'
RUST = tree_sitter.Parser(tree_sitter.Language(tree_sitter_rust.language()))
needs_archive = pytest.mark.skipif(not ARCHIVE.exists(), reason='no shared/data/rust')


def corpus_of(texts): return Corpus('test', tuple(Document(f'{i:06d}', t) for i, t in enumerate(texts)), Report())


@pytest.fixture(scope='module')
def drawn(): return [generate(11, index) for index in range(1_000)]


@pytest.fixture(scope='module')
def tokenizer(drawn): return train_tokenizer([text for text, _ in drawn[:200]], 600)


# corpora

def write(folder, **files):
    for name, data in files.items():
        path = folder/name.replace('__', '/').replace('_rs', '.rs')
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


@settings(max_examples=60, deadline=None)
@given(st.sets(st.text(min_size=1, max_size=20), min_size=1, max_size=60), st.sets(st.text(min_size=1, max_size=20)))
def test_a_file_keeps_its_side_when_others_come_or_go(texts, more):
    few, many = split(corpus_of(sorted(texts))), split(corpus_of(sorted(texts | more)))
    sides = [{d.hash for d in documents} for documents in many.values()]
    assert sum(map(len, sides)) == len(texts | more) == len(set.union(*sides))
    assert all({d.hash for d in few[side]} <= {d.hash for d in many[side]} for side in corpora.SIDES)


@pytest.mark.parametrize('shares', [(.5, .5), (.9, .2, -.1), (.9, .2, .2)])
def test_shares_are_checked(shares):
    with pytest.raises(UserError, match='shares='): split(corpus_of(['a']), shares)


def test_a_limit_takes_files_of_all_sides_and_a_larger_one_takes_more(tmp_path):
    write(tmp_path, **{f'f{i}_rs': f'fn f{i}() {{}}\n'.encode() for i in range(3_000)})
    small, large = load_corpus(str(tmp_path), .005), load_corpus(str(tmp_path), .02)
    assert small.bytes <= 5_000 < large.bytes <= 20_000
    assert {d.hash for d in small.documents} < {d.hash for d in large.documents}
    assert small.report.over_limit + small.report.kept == 3_000
    assert all(split(large).values())
    with pytest.raises(UserError, match='no text'): load_corpus(str(tmp_path), 1e-6)


def test_every_file_is_in_the_report(tmp_path):
    write(tmp_path, a_rs=b'fn a() {}', b__a_rs=b'fn a() {}', nul_rs=b'a\0', latin_rs='ü'.encode('latin1'), none_rs=b'',
          big_rs=b'x' * 200_001, edge_rs=b'x' * 200_000, notes=b'not asked for')
    (tmp_path/'gone.rs').symlink_to(tmp_path/'nowhere')
    report = load_corpus(str(tmp_path)).report
    assert report == Report(8, 2, 200_009, duplicates=1, too_large=1, binary=2, empty=1, unreadable=1)
    assert 'left out: 1 duplicates' in str(report)
    assert load_corpus(str(tmp_path/'big.rs')).report.kept == 1 # named by itself it may be as large as it is


@pytest.mark.parametrize('where, message', [
    ('nowhere', 'no such file'), ('empty', 'no file there ends in .rs'), ('*.py', 'no file has such a name'),
    ('binary', 'holds no text'), ('generated', 'text.grammar'), ('broken.tar.gz', 'fetch it again'),
    ('broken.zip', 'fetch it again'), ('cut.tar.xz', 'fetch it again')])
def test_what_cannot_be_read_is_one_line(tmp_path, where, message):
    write(tmp_path, binary__a_rs=b'\0', empty__notes=b'', **{'broken.tar.gz': b'no', 'broken.zip': b'PK no'})
    write(tmp_path, source__a_rs=os.urandom(5_000).hex().encode())
    with tarfile.open(tmp_path/'whole.tar.xz', 'w:xz') as archive: archive.add(tmp_path/'source', 'source')
    (tmp_path/'cut.tar.xz').write_bytes((tmp_path/'whole.tar.xz').read_bytes()[:3_000])
    place = where if where == 'generated' else str(tmp_path/where)
    with pytest.raises(UserError, match=message) as raised: load_corpus(place)
    assert '\n' not in str(raised.value)


def test_rust_says_how_to_get_it_where_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, 'sources', lambda data=None: [])
    with pytest.raises(UserError, match='rustup component add rust-src'): load_corpus('rust', data=tmp_path)


def test_the_hub(monkeypatch):
    asked = []
    def load_dataset(name, **settings):
        asked.append((name, settings['data_dir']))
        if name == 'a/missing': raise RuntimeError('no\nsuch set')
        column = 'words' if name == 'a/other' else 'content'
        return [{column: f'fn f{i}() {{}}'} for i in range(100)]
    monkeypatch.setitem(sys.modules, 'datasets', types.SimpleNamespace(load_dataset=load_dataset))
    assert load_corpus('hub:a/b').report.kept == 100
    assert load_corpus('hub:a/b/data/rust', 1e-4).bytes <= 100
    assert asked == [('a/b', None), ('a/b', 'data/rust')]
    with pytest.raises(UserError, match='no column'): load_corpus('hub:a/other')
    with pytest.raises(UserError, match='no such set'): load_corpus('hub:a/missing')
    monkeypatch.setitem(sys.modules, 'datasets', None)
    with pytest.raises(UserError, match='pip install datasets'): load_corpus('hub:a/b')


@needs_archive
def test_the_archive():
    corpus = load_corpus(str(ARCHIVE), 1.)
    assert .9e6 < corpus.bytes <= 1e6 and corpus.report.duplicates == 130 and all(split(corpus).values())


# grammar

def test_parser_and_generator_agree(drawn):
    assert max(abs(log_probability(text) + nats) for text, nats in drawn) < 1e-9


def test_the_parser_takes_nothing_else(drawn):
    source, letters = random.Random(0), 'aelrs_ 01(){}.,;:=+|&\n'
    for text, nats in drawn[:300]:
        place, letter = source.randrange(len(text)), source.choice(letters)
        for other in (text[:place] + letter + text[place + 1:], text[:place] + text[place + 1:],
                      text[:place] + letter + text[place:], text.replace(', ', '', 1), text[:place] + text[place + 2:]):
            if other == text: continue
            try: found = log_probability(other)
            except UserError as e: assert str(e).startswith('not a text of the grammar: line')
            else: assert abs(found + nats) > 1e-6, (text, other)


def test_generated_text_is_rust(drawn):
    assert not [text for text, _ in drawn if RUST.parse(text.encode()).root_node.has_error]


def test_names_are_declared_and_never_run_out():
    "With every count at its largest no text runs out of fresh names."
    from reasonnb.text.grammar_rules import RULES
    counts = {choice: {max(outcomes): 1} for choice, outcomes in RULES.items() if isinstance(max(outcomes), int)}
    nested = dict(statement={'for': 1, 'let': 1}, operand={'chain': 1, 'literal': 1}, method={'fold': 1})
    for index in range(20):
        text, nats = generate(0, index, RULES | counts | nested)
        assert nats > 0


def test_texts_do_not_depend_on_the_machine():
    code = 'from reasonnb.text.grammar import generate; print(repr([tuple(generate(5, i)) for i in range(3)]))'
    told = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=ROOT,
                          env=os.environ | {'PYTHONHASHSEED': '123', 'PYTHONPATH': str(ROOT)}).stdout
    assert [Generated(*one) for one in eval(told)] == [generate(5, index) for index in range(3)]


def test_luck_bounds_what_a_wrong_model_gains(drawn):
    "A model that knows the grammar but mistakes a weight is seldom below the floor, and on average above it."
    from reasonnb.text.grammar_rules import RULES
    wrong = RULES | dict(operators={0: 9, 1: 9, 2: 2})
    gains = np.array([-nats - log_probability(text, wrong) for text, nats in drawn]) # ln p - ln q
    assert gains.mean() > 3 * gains.std() / math.sqrt(len(gains)) > 0
    assert np.exp(-gains).mean() < 1 + 4 * np.exp(-gains).std() / math.sqrt(len(gains))
    for loss_below in (.5, 1, 2): assert (gains < -loss_below).mean() <= math.exp(-loss_below)
    assert luck(10., 30.) < 1e-8 and luck(30., 10.) == 1 and floor([1, 3], [2, 2]) == 1


def test_a_corpus_needs_texts():
    with pytest.raises(UserError, match='n=0'): generated_corpus(0)


# tokenizer

@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text())
def test_any_text_comes_back(tokenizer, text):
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text and tokenizer.end not in tokens
    assert tokenizer.bytes_of[tokens].sum() == len(text.encode())
    assert (tokenizer.encode_bytes(text.encode()) == tokens).all()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary())
def test_any_bytes_come_back(tokenizer, data):
    tokens = tokenizer.encode_bytes(data)
    assert tokenizer.decode_bytes(tokens) == data and tokenizer.end not in tokens


@pytest.mark.parametrize('text', [END, f'a{END}b', f'{END}{END}', f'"{END[:-1]}', 'Ġ Ċ', '\r\n\t\0'])
def test_what_looks_like_an_end_is_text(tokenizer, text):
    assert tokenizer.end not in tokenizer.encode(text) and tokenizer.decode(tokenizer.encode(text)) == text
    again = Tokenizer.from_json(tokenizer.to_json())
    assert (again.encode(text) == tokenizer.encode(text)).all() and again.hash == tokenizer.hash


def test_tokenizers_of_others_are_refused(tokenizer):
    about = json.loads(tokenizer.to_json())
    about['model']['vocab'].pop('!')
    about['model']['vocab']['!!!!'] = 1
    with pytest.raises(UserError): Tokenizer(json.dumps(about))
    with pytest.raises(UserError, match='no tokenizer'): Tokenizer('nonsense')


# token sets and all of it together

@pytest.fixture(scope='module')
def home(tmp_path_factory): return tmp_path_factory.mktemp('data')


@pytest.fixture(scope='module')
def config(): return TextConfig(documents=250, vocab=400, context=32)


@pytest.fixture(scope='module')
def data(home, config): return prepare(config, home)


def test_floor_and_bytes_are_those_of_the_texts(data):
    total = {name: generate(0, int(name[:9])) for side in data.sides.values() for name in side.names}
    assert len(total) == 250
    for side in data.sides.values():
        assert side.floor == pytest.approx(sum(total[name].nats for name in side.names) / side.tokens, rel=1e-12)
        assert side.bytes == sum(len(total[name].text) for name in side.names)
        for i, name in enumerate(side.names):
            assert data.tokenizer.decode(side.stream[side.starts[i]:side.starts[i + 1]]) == total[name].text


@pytest.mark.parametrize('context', [2, 7, 32, 5_000])
@pytest.mark.parametrize('most', [None, 1_000])
def test_each_held_out_token_is_predicted_once_from_the_one_before(data, context, most):
    found = data.held_out('test', context, most)
    for i, name in enumerate(found.names):
        mine = found.document == i
        mask = found.mask[mine]
        text, _ = generate(0, int(name[:9]))
        inputs, targets = found.windows[mine, :-1][mask], found.windows[mine, 1:][mask]
        wanted = torch.tensor([*data.tokenizer.encode(text).tolist(), data.tokenizer.end])
        assert torch.equal(targets, wanted) and torch.equal(inputs[1:], wanted[:-1]) and inputs[0] == data.tokenizer.end
        assert found.tokens[i] == len(wanted) and found.bytes[i] == len(text)
    assert most is None or found.tokens.sum() <= most
    assert len(found.names) + found.left_out == len(data.sides['test'].names)


def test_windows_follow_from_seed_and_step(data):
    one = data.windows(3, 5, 4, 32)
    assert one.shape == (4, 33) and one.dtype == torch.int64 and torch.equal(one, data.windows(3, 5, 4, 32))
    assert not torch.equal(one, data.windows(3, 6, 4, 32)) and not torch.equal(one, data.windows(4, 5, 4, 32))
    stream = data.sides['train'].stream
    joined = stream.tobytes()
    assert all(np.asarray(window, '<u2').tobytes() in joined for window in one)


def test_windows_begin_everywhere_with_equal_chances(data):
    part = data.sides['train']
    context = part.tokens - 9 # ten places
    firsts = [tuple(w[:30].tolist()) for step in range(20) for w in data.windows(0, step, 100, context)]
    counts = np.array([firsts.count(tuple(part.stream[i:i + 30].tolist())) for i in range(10)])
    assert counts.sum() == 2_000 and abs(counts - 200).max() < 4.5 * math.sqrt(200 * .9)


def test_a_second_call_reads_no_text(data, home, config, monkeypatch):
    def never(*args, **kwargs): raise AssertionError('read again')
    monkeypatch.setattr(token_batches, 'generated_corpus', never)
    monkeypatch.setattr(token_batches, 'tokenizer_for', never)
    assert prepare(config, home).describe() == data.describe()
    with pytest.raises(AssertionError, match='read again'): prepare(config.replace(documents=251), home)


@pytest.mark.parametrize('name', ['train.tokens', 'validation.json', 'test.tokens', 'tokenizer.json', 'set.json'])
def test_damage_is_one_line_that_names_the_folder(data, home, config, name):
    path = data.folder/name
    good = path.read_bytes()
    bad = [good[:len(good) // 2]] if name == 'set.json' else [good[:len(good) // 2], b'', b'x' + good[1:]]
    try:
        for content in bad:
            path.write_bytes(content)
            with pytest.raises(UserError, match='delete it') as raised: prepare(config, home)
            assert str(data.folder) in str(raised.value) and '\n' not in str(raised.value)
    finally: path.write_bytes(good)
    assert prepare(config, home).hash == data.hash


def test_the_same_files_share_their_tokens(tmp_path):
    write(tmp_path, **{f'one__f{i}_rs': generate(9, i).text.encode() for i in range(120)})
    subprocess.run(['cp', '-r', tmp_path/'one', tmp_path/'two'], check=True)
    settings = [TextConfig(corpus=str(tmp_path/name), vocab=300, context=16) for name in ('one', 'two')]
    first, second = (prepare(one, tmp_path/'data') for one in settings)
    assert first.folder == second.folder and first.floor('test') is None
    (tmp_path/'one/new.rs').write_text('fn new() {}\n')
    changed = prepare(settings[0], tmp_path/'data')
    assert changed.hash != first.hash and changed.report.kept == 121
    assert set(first.sides['test'].names) <= set(changed.sides['test'].names)


def test_wrong_requests_are_one_line(tmp_path, data):
    write(tmp_path, one__a_rs=b'fn a() {}')
    for settings, message in ((dict(corpus=str(tmp_path/'one')), 'more files'),
                              (dict(corpus='nowhere'), 'no such file'),
                              (dict(documents=100, vocab=60_000), 'or more text'), (dict(corpus_mb=1.), 'documents')):
        with pytest.raises(UserError, match=message) as raised:
            prepare(TextConfig(**dict(vocab=300, context=16) | settings), tmp_path/'data')
        assert '\n' not in str(raised.value)
    with pytest.raises(UserError, match='shorter context'): data.windows(0, 0, 1, 10**7)
    with pytest.raises(UserError, match='raise the limit'): data.held_out('test', 8, 2)
