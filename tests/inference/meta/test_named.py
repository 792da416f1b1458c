"""Classes of one's own by their own names."""

import pytest
import torch
from torch import Tensor, nn

from data.errors import UserError
from inference.meta.learner import FittedLearner
from inference.meta.named import find_class, find_predictor, name_of
from inference.meta.options import SibOptions
from models.tasks.predictors import DistancePredictor, Predictor
from tests.inference.meta.test_learner import learner, task


class AbsolutePredictor(Predictor):
    """logits = −scale · Σ_d |f_d − w_d|, which is none of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def outputs(self, features: Tensor, weights: Tensor) -> Tensor:
        return -self.scale * (features[..., :, None, :] - weights[..., None, :, :]).abs().sum(-1)


NAME = f"{__name__}.AbsolutePredictor"


def test_names():
    assert name_of(AbsolutePredictor) == NAME
    assert find_predictor(NAME) is AbsolutePredictor
    assert find_predictor("distance") is DistancePredictor


def test_a_predictor_of_ones_own_predicts_and_is_loaded_again(tmp_path):
    fitted = learner(predictor=AbsolutePredictor)
    assert isinstance(fitted.model.predictor, AbsolutePredictor)
    probabilities = fitted.posterior(*task()).probabilities()
    loaded = FittedLearner.load(fitted.save(tmp_path / "sib.safetensors"))
    assert torch.equal(loaded.posterior(*task()).probabilities(), probabilities)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("euclid", "euclid is unknown: choose cosine, distance, linear, or module.Class"),
        ("nowhere.Predictor", "cannot be imported"),
        ("torch.nn.Linear", "is no Predictor"),
    ],
)
def test_errors(name, message):
    with pytest.raises(ValueError, match=message):
        find_class(name, {"cosine": 0, "distance": 0, "linear": 0}, Predictor)
    with pytest.raises(UserError):
        SibOptions(predictor=name)
