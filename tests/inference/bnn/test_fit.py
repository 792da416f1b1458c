"""The sweep: β is chosen by NLL on validation items, which are not trained on."""

import pytest
import torch
from torchvision.models import get_model

from data.errors import UserError
from data.items import LabelledItems, SupervisedData
from data.regression import load_curve
from inference import svi_bnn
from inference.bnn import fit
from inference.bnn.algorithms import Algorithm, FitSettings, Plan
from inference.bnn.fit import Selection, choose_beta, fit_run, make_problem, split_validation, validate
from inference.bnn.fitting import build_objective
from inference.bnn.options import BnnOptions
from inference.runs.folder import RunFolder
from tests.inference.bnn.conftest import items


def test_beta_of_the_best_nll_is_chosen():
    """Not of the best distortion or rate, nor of the worst NLL."""
    records = [{"beta": beta, "nll": nll, "distortion": beta, "rate": -beta} for beta, nll in ((0.1, 2.0), (1, 1.0), (10, 3.0))]
    assert choose_beta(records) == 1


def test_a_validation_that_leaves_nothing_to_train_on_is_refused():
    with pytest.raises(UserError, match=r"`validation=0\.9` takes all of 4 training items: leave some"):
        split_validation(items(4), 0.9, seed=0)


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


class TestPretrained:
    """Networks with given weights, of which the last layer alone is random, or all."""

    NAME = "shufflenet_v2_x0_5"

    @pytest.fixture
    def given(self, tmp_path):
        """torchvision's network, and a file of it."""
        torch.manual_seed(0)
        network = get_model(self.NAME, weights=None).eval()
        torch.save(network.state_dict(), tmp_path / "weights.pth")
        return network, str(tmp_path / "weights.pth")

    def data(self):
        images = torch.randint(0, 255, (12, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        part = LabelledItems(images, torch.arange(12) % 3, ("a", "b", "c"))
        return SupervisedData("folder", part, part)

    def features(self, network, images):
        mean, std = (torch.tensor(value)[:, None, None] for value in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        network.fc = torch.nn.Identity()
        return network((images.expand(-1, 3, -1, -1) / 255 - mean) / std)

    def options(self, file, **changes):
        return BnnOptions(network=self.NAME, network_weights=file, epochs=3, posteriors=2, progress=False, **changes)

    def test_features_stay_and_the_last_layer_is_fitted(self, given, tmp_path):
        """By every algorithm, points included, with several posteriors in spite of batch norm."""
        (reference, file), data = given, self.data()
        options = self.options(file, weights="last", algorithms="deterministic,vanilla", beta=0.1)
        fitted, _ = fit_run(options, data, RunFolder.create(tmp_path / "run", "bnn", ""))
        with torch.no_grad():
            expected = self.features(reference, data.train.items)
        for bnn in fitted.values():
            model = bnn.posterior.model
            assert model.num_weights == 3 * 1024 + 3
            *start, _ = model.network
            found = torch.nn.Sequential(*start).train()(data.train.items)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
            loc, weight = bnn.posterior.loc, model.split(bnn.posterior.loc)["2.weight"]
            assert torch.isfinite(loc).all()
            assert not torch.equal(weight[0], weight[1])

    def test_fine_tuning_starts_all_posteriors_at_the_given_weights(self, given):
        _, file = given
        problem = make_problem(self.options(file), self.data())
        recipe = problem.recipe(Algorithm.FIXED, 0.1, FitSettings())
        objective, start = build_objective(problem.network, recipe, Plan(2), num_data=12)
        rows = objective.model.split(start)
        assert len(rows) == len(list(problem.network.parameters())) > 50
        assert all(torch.equal(*row) for name, row in rows.items() if not name.startswith("2."))
        assert not torch.equal(*rows["2.weight"])
        torch.testing.assert_close(rows["1.conv1.0.weight"][0], torch.load(file, weights_only=True)["conv1.0.weight"])

    def test_images_have_the_weights_size(self, given, monkeypatch):
        sizes = []
        monkeypatch.setattr(svi_bnn, "load_supervised", lambda *_, image_size, **__: sizes.append(image_size))
        for size in (None, 32):
            svi_bnn.BnnStudy(self.options(given[1], image_size=size)).load()
        svi_bnn.BnnStudy(BnnOptions()).load()
        assert sizes == [224, 32, None]
