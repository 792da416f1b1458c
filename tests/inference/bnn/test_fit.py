"""The sweep: β is chosen by NLL on validation items, which are not trained on."""

import torch

from data.regression import load_curve
from inference.bnn import fit
from inference.bnn.algorithms import Algorithm
from inference.bnn.fit import Selection, choose_beta, fit_run, make_problem, split_validation, validate
from inference.bnn.options import BnnOptions
from inference.runs.folder import RunFolder
from tests.inference.bnn.conftest import items


def test_beta_of_the_best_nll_is_chosen():
    """Not of the best distortion or rate, nor of the worst NLL."""
    records = [{"beta": beta, "nll": nll, "distortion": beta, "rate": -beta} for beta, nll in ((0.1, 2.0), (1, 1.0), (10, 3.0))]
    assert choose_beta(records) == 1


def test_the_chosen_beta_is_trained_on_all_items(monkeypatch, tmp_path):
    def validate(problem, recipe, selection, **_):
        return {"beta": recipe.beta, "nll": abs(recipe.beta - 0.2)}

    trained = []
    monkeypatch.setattr(fit, "validate", validate)
    monkeypatch.setattr(fit, "fit_posterior", lambda network, data, recipe, **_: trained.append((recipe.beta, len(data))))
    options = BnnOptions(data="curve", algorithms="fixed-prior,vanilla", beta="0.01,0.2,3")
    fit_run(options, load_curve(), RunFolder(tmp_path))
    assert trained == [(0.2, 120), (1.0, 120)]


def test_a_beta_is_validated_by_a_fit_that_has_not_seen_the_validation_items(monkeypatch, tmp_path):
    options, seen = BnnOptions(data="curve", algorithms="fixed-prior", beta="0.1,1"), []
    monkeypatch.setattr(fit, "fit_posterior", lambda network, data, recipe, **_: seen.append(data))
    monkeypatch.setattr(fit, "make_record", lambda bnn, train, held_out, **_: (train, held_out))
    problem = make_problem(options, load_curve())
    recipe = problem.recipe(Algorithm.FIXED, 0.1, options.fit)
    train, held_out = validate(problem, recipe, Selection(0.25, 8), loop=options.loop, run=RunFolder(tmp_path))
    assert seen == [train]
    assert (len(train), len(held_out)) == (90, 30)


def test_validation_items_are_a_part_of_the_training_items_and_not_trained_on():
    data = items(50)
    kept, held = split_validation(data, 0.2, seed=0)
    assert (len(kept), len(held)) == (40, 10)
    both = torch.cat([kept.items, held.items])
    assert sorted(map(tuple, both.tolist())) == sorted(map(tuple, data.items.tolist()))
