"""What a record says: rescaled distortions, like compared with like, and only bounds that hold."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from data.items import LabelledItems
from inference.bnn import report
from inference.bnn.algorithms import Algorithm
from inference.bnn.bnn import BNN
from inference.bnn.posterior import WeightPosterior
from inference.bnn.report import BnnRecord, bound_holds, format_table, legend, make_record
from models.bayesian.network import BayesianNetwork
from models.bayesian.weight_priors import MixtureWeightPrior, ScaledWeightPrior
from models.bayesian.weight_scales import PriorScales, WeightScales
from tests.inference.bnn.conftest import items


def fitted(algorithm=Algorithm.FIXED, components=1, scale=0.1, network=None, **options) -> BNN:
    model = BayesianNetwork(network or nn.Linear(4, 3), **options)
    if algorithm.is_mixture:
        model.prior = MixtureWeightPrior.standard(components, model.num_weights)
    loc = torch.randn(components, model.num_weights)
    posterior = WeightPosterior(model, loc, None if scale is None else torch.full_like(loc, scale).log())
    return BNN(algorithm, 0.5, posterior, posterior.rate())


def record(bnn, train, held_out) -> BnnRecord:
    return make_record(bnn, train, held_out, split="test", samples=8, seed=0)


class TestRecord:
    def test_distortion_is_of_all_training_items_though_estimated_from_some(self, monkeypatch):
        """Of equal items any part says what all say."""
        train = LabelledItems(torch.ones(60, 4), torch.zeros(60, dtype=torch.long), ("0", "1", "2"))
        bnn = fitted(scale=None)
        whole = record(bnn, train, train)["distortion"]
        monkeypatch.setattr(report, "SCORED_AT_MOST", 15)
        assert record(bnn, train, train)["distortion"] == pytest.approx(whole, rel=1e-5)
        assert record(bnn, train, train)["guess"] == pytest.approx(60 * math.log(3))
        assert whole == pytest.approx(60 * record(bnn, train, train)["train_nll"], rel=1e-5)

    def test_each_score_is_of_its_own_items(self):
        bnn, train, held_out = fitted(scale=None), items(50), items(20)
        found, posterior = record(bnn, train, held_out), bnn.posterior
        assert found["nll"] == pytest.approx(posterior.scores(held_out)["nll"])
        assert found["accuracy"] == posterior.scores(held_out)["accuracy"]
        assert found["train_nll"] == pytest.approx(posterior.scores(train)["nll"])
        assert found["train_accuracy"] == posterior.scores(train)["accuracy"]

    def test_elbo_guess_and_scales(self):
        bnn, train = fitted(), items(50)
        found = record(bnn, train, items(20))
        assert found["rate"] == pytest.approx(float(bnn.posterior.rate()))
        assert found["neg_elbo"] == pytest.approx(found["distortion"] + found["rate"])
        assert found["guess"] == pytest.approx(50 * math.log(3))
        assert found["scale_quantiles"] == pytest.approx([0.1] * 3)

    def test_points_have_no_rate(self):
        found = record(fitted(Algorithm.DETERMINISTIC, scale=None), items(50), items(20))
        for name in (
            "rate",
            "mixture_rate",
            "rate_against",
            "neg_elbo",
            "scale_quantiles",
            "information",
            "bound",
            "sharpness",
        ):
            assert found[name] is None, name

    def test_fields_are_those_of_the_type(self):
        assert record(fitted(), items(50), items(20)).keys() == BnnRecord.__annotations__.keys() - {
            "auroc",
            "kl_inside",
            "kl_outside",
            "width",
            "r_hat",
        }


class TestGap:
    def test_is_positive_where_held_out_items_are_harder(self):
        """Test error less training error: a network that is right in training and wrong on the rest has a gap of 1."""
        bnn, train = fitted(scale=None), items(30)
        right = bnn.posterior.outputs(train.items)[0].argmax(-1)
        train = replace(train, labels=right)
        found = record(bnn, train, replace(train, labels=(right + 1) % 3))
        assert found["gap"] == 1.0
        assert (found["train_gibbs_accuracy"], found["gibbs_accuracy"]) == (1.0, 0.0)

    def test_compares_gibbs_error_with_gibbs_error_and_the_same_draws(self):
        """On the very same items the gap is exactly 0, though more draws make the predictive distribution better."""
        data = items(40)
        for bnn in (fitted(scale=2.0), fitted(Algorithm.BETA_BNN, components=3, scale=2.0)):
            found = record(bnn, data, data)
            assert found["gap"] == 0.0
            assert found["gibbs_accuracy"] != found["accuracy"]


class TestBound:
    def test_is_of_the_training_items(self):
        """Xu and Raginsky: sqrt(2 σ² I/n) with σ = ½ and n what was trained on, not what is scored."""
        bnn = fitted()
        found = record(bnn, items(50), items(20))
        assert found["information"] == found["rate"]
        assert found["bound"] == pytest.approx(math.sqrt(found["rate"] / (2 * 50)))

    @pytest.mark.parametrize("algorithm", [Algorithm.BETA_BNN, Algorithm.ONLINE])
    def test_is_not_given_against_a_mixture(self, algorithm):
        """Its components have seen the data, and the estimate of I(w; S) is between bootstrap samples of one set."""
        found = record(fitted(algorithm, components=3), items(50), items(20))
        assert found["rate_against"] == "mixture"
        assert found["rate"] is found["neg_elbo"] is None, "which are against a prior"
        assert found["mixture_rate"] > 0
        assert 0 <= found["information"] <= math.log(3) + 1e-6
        assert found["bound"] is None

    def test_is_not_given_where_more_than_the_posterior_was_learned(self):
        assert bound_holds(fitted())
        assert not bound_holds(fitted(random=lambda name: name == "weight")), "a bias that is an ordinary parameter"
        assert not bound_holds(fitted(network=nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)))), "running statistics"
        learned = fitted()
        learned.posterior.model.prior.scale = nn.Parameter(torch.tensor(1.0))
        assert not bound_holds(learned), "a prior fitted to the data"
        model = fitted().posterior.model
        learned.posterior.model.prior = ScaledWeightPrior(model.prior, WeightScales(model.shapes, PriorScales.LAYER))
        found = record(learned, items(50), items(20))
        assert found["information"] is found["bound"] is None
        assert found["rate"] is not None

    def test_information_has_the_same_digits_each_time(self):
        bnn, train, test = fitted(Algorithm.BETA_BNN, components=2, scale=3.0), items(50), items(20)
        assert record(bnn, train, test)["information"] == record(bnn, train, test)["information"]


@pytest.mark.parametrize(
    ("scores", "heading", "cell"), [((0.9, None), "accuracy %", "90.00"), ((None, 0.1834), "RMSE", "0.183")]
)
def test_an_error_stands_below_its_own_heading(scores, heading, cell):
    row = record(fitted(), items(50), items(20)) | {"accuracy": scores[0], "rmse": scores[1]}
    header, line = format_table([row]).splitlines()
    assert {"accuracy %", "RMSE"} & {name.strip() for name in header.split("  ")} == {heading}
    assert line.split()[2] == cell


def test_table_says_what_a_rate_is_against():
    train, test = items(50), items(20)
    rows = [record(fitted(a, components=k), train, test) for a, k in ((Algorithm.FIXED, 1), (Algorithm.ONLINE, 2))]
    header, prior, mixture = (line.split("  ") for line in format_table(rows).splitlines())
    columns = [[cell.strip() for cell in line if cell.strip()] for line in (header, prior, mixture)]
    at = {name: i for i, name in enumerate(columns[0])}
    assert columns[1][at["rate (prior)"]] == f"{rows[0]['rate']:.1f}"
    assert columns[1][at["rate (mixture)"]] == "-"
    assert columns[2][at["rate (prior)"]] == "-"
    assert columns[2][at["rate (mixture)"]] == f"{rows[1]['mixture_rate']:.1f}"
    assert [row[at["−ELBO"]] for row in columns[1:]] == [f"{rows[0]['neg_elbo']:.1f}", "-"]
    assert columns[2][at["bound %"]] == "-"
    assert columns[1][at["guess"]] == f"{50 * math.log(3):.1f}"
    assert columns[1][at["σ 5 / 50 / 95 %"]] == "0.1 0.1 0.1"


def test_legend_warns_of_scales_that_did_not_reach_their_optimum():
    rows = [record(replace(fitted(), warning=warning), items(50), items(20)) for warning in (None, "more epochs")]
    assert "fixed-prior: more epochs" in legend(rows).splitlines()
    assert "fixed-prior" not in legend(rows[:1])


def test_legend_keeps_rates_of_few_weights_from_being_compared():
    """Only where such a row is shown."""
    train, test = items(50), items(20)
    rows = [record(fitted(random=random), train, test) for random in (None, lambda name: name == "bias")]
    assert [(row["random_weights"], row["weights"]) for row in rows] == [(15, 15), (3, 15)]
    assert "count 3 random weights of 15" in legend(rows)
    assert "random weights" not in legend(rows[:1])
    points = record(fitted(Algorithm.DETERMINISTIC, scale=None), train, test)
    assert "random weights" not in legend([points | {"random_weights": 3}]), "which has no rate"


def test_legend_says_that_nothing_minimised_the_elbo_of_swag():
    rows = [record(fitted(algorithm), items(50), items(20)) for algorithm in (Algorithm.VANILLA, Algorithm.SWAG)]
    assert "swag: −ELBO is of its Gaussian under its prior" in legend(rows)
    assert "swag" not in legend(rows[:1])
