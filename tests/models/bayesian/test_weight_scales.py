"""Which weights share a scale, where scales start, and which are learned."""

import torch
from torch import nn

from models.bayesian.weight_scales import PriorScales, WeightScales, fan_in

NETWORK = nn.Sequential(nn.Conv2d(2, 3, 3), nn.GroupNorm(1, 3), nn.Flatten(), nn.Linear(12, 5, bias=False))
SHAPES = {name: parameter.shape for name, parameter in NETWORK.named_parameters()}


def test_fan_in_is_of_the_layer_and_a_bias_has_its_weights():
    assert fan_in(SHAPES) == {"0.weight": 18, "0.bias": 18, "1.weight": 1, "1.bias": 1, "3.weight": 12}


def test_groups_are_those_of_the_name():
    for kind, groups in ((PriorScales.LAYER, 5), (PriorScales.INPUT, 2 + 1 + 1 + 1 + 12)):
        scales = WeightScales(SHAPES, kind)
        assert scales.log_scale.shape == (groups,)
        assert scales.log_scale.requires_grad
        assert WeightScales(SHAPES, kind, 3).log_scale.shape == (3, groups)
    assert WeightScales(SHAPES, PriorScales.FAN_IN, 3).batch_shape == ()
    assert not list(WeightScales(SHAPES, PriorScales.FAN_IN).parameters())


def test_they_start_at_one_over_root_fan_in_in_the_order_of_the_weights():
    fans = torch.cat([torch.full(shape, fan_in(SHAPES)[name]).flatten() for name, shape in SHAPES.items()])
    for kind in (PriorScales.LAYER, PriorScales.INPUT, PriorScales.FAN_IN):
        torch.testing.assert_close(WeightScales(SHAPES, kind)().detach().exp(), fans.float().rsqrt())


def test_posteriors_side_by_side_have_their_own_and_one_may_be_held():
    scales = WeightScales({"weight": (3, 2), "bias": (3,)}, PriorScales.INPUT, 2)
    with torch.no_grad():
        scales.log_scale.copy_(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    expected = torch.tensor([[1.0, 2.0] * 3 + [3.0] * 3, [4.0, 5.0] * 3 + [6.0] * 3])
    assert torch.equal(scales(), expected[:, None])
    assert torch.equal(scales.rows(), expected)
    scales.hold(1)
    assert torch.equal(scales(), expected[1])
    assert not list(scales.parameters())


def test_scales_that_all_posteriors_shared_become_those_of_each():
    """Runs of earlier versions load."""
    shared, own = (WeightScales({"weight": (3, 2)}, PriorScales.INPUT, k) for k in (1, 2))
    with torch.no_grad():
        shared.log_scale.copy_(torch.tensor([1.0, 2.0]))
    own.load_state_dict(shared.state_dict())
    assert own.log_scale.tolist() == [[1.0, 2.0]] * 2


def test_an_input_units_scale_is_of_all_that_leaves_it():
    scales = WeightScales({"weight": (3, 2)}, PriorScales.INPUT)
    with torch.no_grad():
        scales.log_scale.copy_(torch.tensor([1.0, 2.0]))
    assert scales().tolist() == [1.0, 2.0] * 3
