"""Counting right boards, against plain counting: any batch size, blanks only, with the network at rest."""
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reasonnb.sudoku.board import BoardShape
from reasonnb.sudoku.generator import generate
from reasonnb.sudoku.metrics import Evaluation, evaluate, failure_metrics, flat_metrics
from reasonnb.systems.looped.transformer import LoopedTransformer

BOX = BoardShape(2, 2)
pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def boards(): return tuple(torch.as_tensor(a).long() for a in generate(12, BOX, seed=3, clues=8))


@pytest.fixture
def model():
    "A network with dropout whose answers keep changing from one iteration to the next."
    torch.manual_seed(0)
    model = LoopedTransformer(BOX, 16, 1, heads=2, d_ff=32, dropout=.5, recurrence='add', readout='residual')
    with torch.no_grad():
        for p in model.parameters(): p.mul_(3)
    return model


def test_counts_are_those_of_plain_counting(model, boards):
    puzzles, solutions = boards
    found = evaluate(model.train(), puzzles, solutions, np.zeros(12), iterations=(2, 4), batch_size=5)
    assert model.training  # as it was
    blank, state, predictions = puzzles == 0, model.eval().start(puzzles), []
    with torch.no_grad():
        logits = model(puzzles, 4)
        for _ in range(4):
            state = model.step(state)[1]
            predictions.append(state.prediction)
    answers = logits.argmax(-1)
    right = (((answers == solutions - 1) & blank).sum(-1))[[1, 3]]
    moved = answers[[1, 3]] != answers[[0, 2]]
    assert found.right.tolist() == right.tolist() and found.blanks.tolist() == blank.sum(1).tolist()
    assert found.changed.tolist() == (moved & blank).any(-1).tolist() != moved.any(-1).tolist()
    for row, iteration in enumerate((1, 3)):
        loss = F.cross_entropy(logits[iteration][blank], solutions[blank] - 1).item()
        size = predictions[iteration].square().mean().sqrt().item()
        assert (found.loss[row], found.answer_size[row]) == pytest.approx((loss, size), rel=1e-5)
    evaluate(model, puzzles, solutions, np.zeros(12), iterations=(2,))
    assert not model.training


COUNTS = Evaluation(
    iterations=(1, 2, 3),
    right=np.array([[0, 3], [2, 2], [4, 1]]),
    changed=np.array([[True, True], [True, False], [True, False]]),
    blanks=np.array([4, 4]),
    ratings=np.array([0., 5.]),
    classes=np.array([7, 8]),
    loss=np.array([.3, .2, .1]),
)


def test_failures_are_counted_over_unsolved_boards():
    share = 'still_changing_share'
    assert failure_metrics(COUNTS, 3) == {'best_iteration': 1, share: 0, f'{share}/solved': 1}
    none_left = replace(COUNTS, right=np.array([[0, 3], [2, 2], [4, 4]]))
    assert failure_metrics(none_left, 3) == {f'{share}/solved': .5}


def test_every_number_is_read_at_its_own_iteration():
    metrics = flat_metrics(COUNTS, main=3, trained=2)
    assert (metrics['loss'], metrics['puzzle_accuracy'], metrics['cell_accuracy']) == (.1, .5, 5 / 8)
    assert [metrics[f'cell_accuracy@{n}'] for n in (1, 2, 3)] == [3 / 8, 4 / 8, 5 / 8]
    assert (metrics['puzzle_accuracy/rating_0'], metrics['puzzle_accuracy/trained_rating_0']) == (1, 0)
    assert (metrics['puzzle_accuracy/rating_3-10'], metrics['n_test/rating_3-10']) == (0, 1)
