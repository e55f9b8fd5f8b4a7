"The shipped reasoning model: the log's prompts, held-out questions, and what it says where it guesses."
import pytest

from reasonnb.core.config import UserError
from reasonnb.core.paths import shipped
from reasonnb.systems.cognate.answering import answerers, load_answerer
from reasonnb.systems.cognate.commands import ask
from reasonnb.systems.cognate.measures import written_answers
from reasonnb.text.questions import LOG_QUESTIONS, is_right
from reasonnb.text.task_rules import draw_question


@pytest.fixture(scope='module')
def best(): return load_answerer()


def test_all_prompts_of_the_log_are_answered(best):
    for question in LOG_QUESTIONS:
        found = best.answer(question.prompt)
        assert found.text == question.answer.strip() and is_right(question, found.working)
        assert found.sure > .5 and not found.long
        assert best.answer(question.prompt.removesuffix(' A:')).text == found.text  # as people type it
    assert best.answer('25 + 17').text == best.answer('25+17=').text == '42'


@pytest.mark.parametrize('task, level', [('add_worked', 1), ('add_worked', 2), ('subtract_worked', 2),
                                         ('word_worked', 1)])
def test_held_out_questions_are_answered(best, task, level):
    questions = list({draw_question(task, 'test', 7, i, level) for i in range(60)})
    right = [is_right(*pair) for pair in zip(questions, written_answers(best.model, questions, best.symbols))]
    assert sum(right) >= .95 * len(right)


def test_the_pairs_are_small(best):
    paths = [shipped(f'data/checkpoints/{name}.pt') for name in answerers()]
    assert best.name == 'cognate' and sum(path.stat().st_size for path in paths) <= 4e6


def test_the_command_answers_shows_its_working_and_says_where_it_guesses(capsys):
    ask('What is 25 + 17?')
    assert capsys.readouterr() == ('42\n', '')
    ask('480 - 295', working=True)
    assert capsys.readouterr().out.strip() == '084-592=581>185'
    ask('Who wrote the tables of the elements of chemistry')
    assert 'a guess' in capsys.readouterr().err
    with pytest.raises(UserError, match='empty'): ask(' ')
