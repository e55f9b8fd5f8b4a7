"Generated questions: what holds for any text, any mix and any side, and what wrong requests lead to."
import random
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonnb.core.config import UserError
from reasonnb.text.hub_questions import HUB_SETS, hub_questions
from reasonnb.text.questions import LOG_QUESTIONS, Question, Task, final_answer, is_right, split_of
from reasonnb.text.symbols import WORDS, Symbols
from reasonnb.text.task_mix import WEIGHTS, TaskMix, encode_question, score, tier
from reasonnb.text.task_rules import TASKS, draw_question

SYMBOLS = Symbols()
PRINTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)
LEVELS = [(name, level) for name, task in TASKS.items() for level in task.levels]


@pytest.fixture(scope='module')
def mix(): return TaskMix()


# symbols

@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(PRINTABLE, st.sampled_from(WORDS)), max_size=4).map(''.join))
def test_printable_text_comes_back(text):
    ids = SYMBOLS.encode(text)
    assert [SYMBOLS.texts[i] for i in ids] == SYMBOLS.pieces(text)
    assert SYMBOLS.decode(ids) == text
    assert len(ids) <= len(text) and (not len(ids) or 2 <= ids.min() <= ids.max() < SYMBOLS.vocab)
    place, known = 0, sorted(SYMBOLS.texts[2:], key=len, reverse=True)
    for piece in SYMBOLS.pieces(text):  # the longest that fits, found without a pattern
        assert piece == next(word for word in known if text.startswith(word, place))
        place += len(piece)


@settings(max_examples=50, deadline=None)
@given(PRINTABLE, st.characters(exclude_categories=['Cs']).filter(lambda sign: not ' ' <= sign <= '~'), PRINTABLE)
def test_the_first_sign_outside_is_named(before, sign, after):
    with pytest.raises(UserError, match=re.escape(f'{sign!r} at place {len(before)}')) as error:
        SYMBOLS.encode(before + sign + after)
    assert '\n' not in str(error.value)


def test_no_two_symbols_read_the_same():
    assert len(set(SYMBOLS.texts)) == SYMBOLS.vocab == 97 + len(WORDS)


# questions

@pytest.mark.parametrize('name, level', LEVELS)
def test_both_sides_have_questions_and_share_none(name, level):
    sides = {split: [draw_question(name, split, 0, i, level) for i in range(20)] for split in ('train', 'test')}
    for split, questions in sides.items():
        assert {(question.task, question.difficulty) for question in questions} == {(name, level)}
        assert {split_of(question.operands) for question in questions} == {split}
        assert all(is_right(question, question.answer + '\n') for question in questions)
        assert not any(is_right(question, question.answer + '1') for question in questions)
    prompts = [{question.prompt for question in questions} for questions in sides.values()]
    assert not prompts[0] & prompts[1]


def test_each_prompt_has_one_answer():
    answers = {}
    for name, level in LEVELS:
        for i in range(30):
            question = draw_question(name, 'train', 1, i, level)
            answer = final_answer(question.answer)
            assert answers.setdefault(question.prompt, answer) == answer


def test_forms_of_a_sum_lie_on_one_side():
    sides = {'train': set(), 'test': set()}
    for name in ('add', 'add_plain', 'add_backwards', 'word'):
        for i, split in [(i, split) for i in range(100) for split in sides]:
            question = draw_question(name, split, 2, i, 1)
            if question.operands[0] != '+': continue
            sides[split].add(tuple(sorted(map(int, re.findall(r'\d+', question.prompt)))))  # as a reader sees it
    assert min(map(len, sides.values())) > 5 and not sides['train'] & sides['test']


@pytest.mark.parametrize('question', LOG_QUESTIONS, ids=lambda question: question.task)
def test_prompts_of_the_log_are_drawn_for_the_test_only(question):
    task, rng = TASKS[question.task], random.Random(0)
    assert split_of(question.operands) == 'test'
    assert all(task.draw_from(rng, question.difficulty, 'train').operands != question.operands for _ in range(300))


def test_the_working_of_long_problems_shows_no_sum_that_is_asked_in_the_test():
    for split in ('train', 'test'):
        for i in range(300):
            question = draw_question('word_worked', split, 3, i, 2 + i % 2)
            for a, sign, b in re.findall(r'(\d+)([+-])(\d+)=', question.answer):
                a, b = (int(number[::-1]) for number in (a, b))
                assert split_of((sign, *sorted((a, b))) if sign == '+' else (sign, a, b)) == 'train', question


def test_a_tenth_is_kept():
    for name, level in LEVELS:
        if level == 1: continue  # some have few operands
        rng = random.Random(3)
        operands = {TASKS[name].draw(rng, level).operands for _ in range(300)}
        share = sum(split_of(one) == 'test' for one in operands) / len(operands)
        assert .03 < share < .18, (name, level, share)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(LEVELS), st.sampled_from(['train', 'test']), st.integers(0, 2**40), st.integers(0, 2**40))
def test_a_question_is_determined_by_its_arguments(cell, split, seed, index):
    (name, level) = cell
    random.seed(index)  # what others do with the global source has no effect
    assert draw_question(name, split, seed, index, level) == draw_question(name, split, seed, index, level)
    assert draw_question(name, split, seed, index).difficulty in TASKS[name].levels


# the mix

@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), step=st.integers(0, 10**6), rows=st.integers(1, 6), which=st.sampled_from([0, 1]),
       split=st.sampled_from(['train', 'test']))
def test_rows_hold_whole_questions(mix, seed, step, rows, which, split):
    batch = mix.windows(seed, step, rows, which, split)
    again = mix.windows(seed, step, rows, which, split)
    assert all(torch.equal(vars(batch)[name], vars(again)[name]) for name in vars(batch))
    assert batch.tokens.shape == (rows, 97) and batch.answers.shape == batch.pads.shape == (rows, 96)
    names = list(mix.places)
    for row, answers, pads, task in zip(batch.tokens, batch.answers, batch.pads, batch.task):
        assert row[0] == SYMBOLS.end
        assert not pads.any() or bool(pads[pads.int().argmax():].all())  # only at the end
        text = SYMBOLS.decode(row)[1:]
        assert text == '' or text.endswith('\n')
        assert len(text.split('\n')) - 1 == int((answers & (row[1:] == SYMBOLS.end)).sum())
        tasks = [names[i] for i in task[~pads].unique_consecutive()]
        assert set(tasks) <= set(mix.tiers[which])
        assert not (answers & pads).any()


def test_answers_of_a_batch_are_right(mix):
    questions = [draw_question(name, 'test', 5, i, 1) for name in WEIGHTS for i in range(3)]
    batch = mix.pack(questions)
    ends = (batch.tokens == SYMBOLS.end).sum() - len(batch.tokens)
    assert ends == len(questions)
    found = []
    for row, answers in zip(batch.tokens, batch.answers):
        ids, at = row[1:].tolist(), 0
        while at < len(ids) and ids[at] != SYMBOLS.pad:
            stop = ids.index(SYMBOLS.end, at) + 1
            counted = SYMBOLS.decode([i for i, counts in zip(ids[at:stop], answers[at:stop]) if counts])
            found.append((SYMBOLS.decode(ids[at:stop]), counted))
            at = stop
    def wanted(question):
        said = ''.join(question.prompt[place] for place in question.given)
        return f'{question.prompt}{question.answer}\n', f'{said}{question.answer}\n'
    assert sorted(found) == sorted(map(wanted, questions))


@pytest.mark.parametrize('name', list(TASKS))
def test_prompt_and_answer_are_the_same_apart_and_together(name):
    for i in range(30):
        question = draw_question(name, 'train', 7, i)
        together = SYMBOLS.ids(question.prompt + question.answer)
        assert encode_question(question, SYMBOLS).ids == [*together, SYMBOLS.end]


@pytest.mark.parametrize('weights, levels, rows', [
    (dict(recall=1, add_plain=1), dict(recall=(3,), add_plain=(1,)), 16),
    (dict(recall=3, add_plain=1), dict(recall=(2,), add_plain=(1, 2)), 4),
    (dict(needle=1, word=2, copy=.5), dict(needle=(1, 2), word=(3,), copy=(1,)), 16)])
def test_the_share_of_tokens_is_the_weight(weights, levels, rows):
    mix, steps = TaskMix(weights, tiers=(levels,)), 800 // rows
    counts = sum(torch.bincount(batch.task[~batch.pads], minlength=len(TASKS))
                 for batch in (mix.windows(0, step, rows) for step in range(steps)))
    for name, weight in weights.items():
        share = float(counts[mix.places[name]] / counts.sum())
        assert abs(share - weight / sum(weights.values())) < .03, (name, share)


def test_a_level_named_twice_counts_twice():
    mix = TaskMix(dict(add=1), tiers=(dict(add=(1, 2, 2)),))
    levels = torch.cat([mix.windows(0, step, 16).difficulty.ravel() for step in range(40)])
    assert abs(float((levels == 2).sum() / (levels > 0).sum()) - 2 / 3) < .03


def test_the_easy_tier_has_no_weight_on_what_it_leaves_out(mix):
    easy = {name for name, level in LEVELS if name in WEIGHTS and level in mix.tiers[0].get(name, ())}
    seen = torch.cat([mix.windows(0, step, 16, 0).task.ravel() for step in range(30)]).unique().tolist()
    assert {list(mix.places)[i] for i in seen if i >= 0} == easy < set(WEIGHTS)
    assert [tier(share) for share in (0., .3, 1.)] == [0, 1, 1]


@pytest.mark.parametrize('more, fault', [
    (dict(weights=dict(add=0, word=0)), 'sum to nothing'), (dict(weights=dict(wrod=1)), "did you mean 'word'"),
    (dict(weights=dict(add=float('inf'))), 'weight inf'), (dict(context=1), 'context=1'),
    (dict(tiers=()), 'at least one tier'), (dict(tiers=(dict(addd=(1,)),)), "did you mean 'add"),
    (dict(tiers=(dict(word=(1, 9)),)), 'level 9 of the task word'), (dict(tiers=({},)), 'no task with a weight'),
    (dict(context=20), 'more than context=20')])
def test_mixes_that_cannot_be_drawn(more, fault):
    with pytest.raises(UserError, match=fault) as error: TaskMix(**more)
    assert '\n' not in str(error.value)


def test_the_score_counts_by_task_and_difficulty(mix):
    asked = [*mix.held_out('add', 1, 99), *mix.held_out('add', 2, 30), *mix.held_out('copy', 1, 10)]
    table = score(asked, [question.answer if question.task == 'add' else '' for question in asked])
    assert table.share.tolist() == [1, 1, 0] and table.right.tolist() == [*table.n[:2], 0]
    assert table.n[0] < 99  # no question comes twice
    assert (table.low <= table.share).all() and (table.high >= table.share).all() and 0 < table.high[2] < 1
    assert len(score([], [])) == 0


def test_held_out_questions_of_a_task_end_where_it_has_no_more():
    def make(rng, level):
        a = rng.randrange(30)
        return Question(f'{a}', str(a), 'few', 1, ('few', a))
    mix = TaskMix(dict(few=1), tiers=(dict(few=(1,)),), tasks=dict(few=Task('few', '.', (1,), make)))
    wanted = {str(a) for a in range(30) if split_of(('few', a)) == 'test'}
    assert {question.prompt for question in mix.held_out('few', 1, 100)} == wanted
    with pytest.raises(UserError, match='unknown task'): mix.held_out('add', 1, 1)


# the hub

def test_a_set_of_the_hub_is_read(monkeypatch):
    asked = []
    def load_dataset(*place, split):
        asked.append((*place, split))
        return [dict(question='1 and 1?', answer='it is two\n#### 2')]
    monkeypatch.setitem(sys.modules, 'datasets', SimpleNamespace(load_dataset=load_dataset))
    questions = hub_questions('gsm8k', 'test', 5)
    assert asked == [('openai/gsm8k', 'main', 'test[:5]')]
    assert (questions[0].prompt, questions[0].answer) == ('1 and 1? A:', ' 2')
    with pytest.raises(UserError, match='svamp cannot be read'): hub_questions('svamp')


def test_without_the_package_or_the_network(monkeypatch):
    monkeypatch.setitem(sys.modules, 'datasets', None)
    with pytest.raises(UserError, match='pip install datasets'): hub_questions('gsm8k')
    def load_dataset(*place, split): raise ConnectionError('no route\nto host')
    monkeypatch.setitem(sys.modules, 'datasets', SimpleNamespace(load_dataset=load_dataset))
    for name in HUB_SETS:
        with pytest.raises(UserError, match='no route to host.*check the network') as error: hub_questions(name)
        assert '\n' not in str(error.value)
    with pytest.raises(UserError, match="did you mean 'gsm8k'"): hub_questions('gsm8')
