"""Feature networks of one's own modules."""

import pytest
import torch
from torch import nn

from data.errors import UserError
from models.networks.feature_network import FeatureNetwork


class Means(nn.Module):
    """A module of the user's: mean and standard deviation of each channel, and one weight."""

    def __init__(self):
        super().__init__()
        self.scale, self.norm = nn.Parameter(torch.tensor(2.0)), nn.BatchNorm1d(6)

    def forward(self, images):
        return self.scale * self.norm(torch.cat([images.mean((-2, -1)), images.std((-2, -1))], dim=-1))


def test_a_module_is_used_as_it_is():
    module = Means()
    network = FeatureNetwork(module, (3, 8, 8), normalisation=((0.5, 0.4, 0.3), (0.1, 0.2, 0.3)))
    assert (network.name, network.num_features, network.backbone) == ("Means", 6, module)
    assert module.training
    assert module.norm.num_batches_tracked == 0, "the dry run leaves statistics alone"
    images = torch.randint(0, 255, (4, 3, 8, 8), dtype=torch.uint8)
    mean, std = torch.tensor([0.5, 0.4, 0.3])[:, None, None], torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    torch.testing.assert_close(network.eval()(images), module((images / 255 - mean) / std))


def test_its_description_asks_for_it():
    network = FeatureNetwork(Means().double(), (3, 8, 8), mirror=True)
    described = network.description()
    assert (described["kind"], described["backbone"]) == ("own", "Means")
    with pytest.raises(UserError, match=r"the feature network is a module of your own \(Means\): give it as `backbone`"):
        FeatureNetwork.from_description(described)
    again = FeatureNetwork.from_description(described, backbone=Means())
    again.load_state_dict(network.state_dict())
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(again.eval()(images), network.float().eval()(images))


@pytest.mark.parametrize("damage", [{"backbone": 3}, {"backbone": None}, {"image_shape": 28}, {"image_shape": "28"}])
def test_a_description_of_other_kinds_is_damaged(damage):
    described = FeatureNetwork("conv4-16", (1, 28, 28)).description() | damage
    with pytest.raises(UserError, match="the description of the feature network is damaged"):
        FeatureNetwork.from_description(described)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Conv2d(3, 4, 3), r"backbone \(Conv2d\) must give one vector per image: two images of 3×8×8 came out as 2×4×6×6"),
        (nn.Linear(3, 4), r"backbone \(Linear\) fails on blank images of 3×8×8 \(channels×height×width\): .*mat1 and mat2"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten()), r"backbone \(Sequential\) fails on blank images of 3×8×8"),
        (nn.Flatten(0), r"came out as 384, not 2×D"),
    ],
)
def test_modules_that_give_no_features(module, message):
    with pytest.raises(UserError, match=message) as error:
        FeatureNetwork(module, (3, 8, 8))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("normalisation", [((0.5,), (0.5,)), ((0.5, 0.5, 0.5), (0.5, 0.5)), ((0.5,) * 3, (0.5, 0.0, 0.5))])
def test_normalisation_that_does_not_fit(normalisation):
    with pytest.raises(UserError, match="`normalisation` must be a mean and a standard deviation above 0 for each"):
        FeatureNetwork("conv4-4", (3, 16, 16), normalisation=normalisation)
