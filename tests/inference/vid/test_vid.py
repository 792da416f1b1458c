"""VID as a library: exactness at λ = 0, what teaches whom, what is measured, and errors."""

import copy

import pytest
import torch
from torch import nn

import inference.vid.student
from data.augmentation import CROPS, LETTERS
from data.errors import UserError
from inference.vid.training import DistillationTraining
from inference.vid.vid import VID
from models.distillation.information import DecodingGain
from models.networks.classifiers import build_network
from models.networks.layers import features
from tests.inference.vid.conftest import images


def digits(per_class=6):
    """Images of ten classes that can be told apart: noise about a pattern of the class."""
    generator = torch.Generator().manual_seed(0)
    patterns = 255 * torch.rand(10, 1, 16, 16, generator=generator)
    labels = torch.arange(10 * per_class) % 10
    noise = 160 * torch.randn(10 * per_class, 1, 16, 16, generator=generator)
    return (patterns[labels] + noise).round().clamp(0, 255).to(torch.uint8), labels


def networks(seed=0):
    torch.manual_seed(seed)
    return build_network("conv4-8", (1, 16, 16), 10), build_network("conv4-4", (1, 16, 16), 10)


def test_weight_zero_is_the_plain_student_bit_for_bit():
    x, y = digits()
    trained = []
    for method, strength in (("student", 1.0), ("vid", 0.0), ("kd+vid+at", 0.0)):
        teacher, student = networks()
        trained.append(VID.fit(student, teacher, x, y, method=method, strength=strength, updates=10).student.state_dict())
    for other in trained[1:]:
        assert all(torch.equal(value, other[name]) for name, value in trained[0].items())


def test_teacher_stays_as_it_was():
    x, y = digits()
    teacher, student = networks()
    teacher.train()
    before = copy.deepcopy(teacher.state_dict())
    VID.fit(student, teacher, x, y, method="kd+vid+lwf", updates=5)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())
    assert not any(m._forward_hooks for n in (teacher, student) for m in n.modules())


def test_vectors_and_modules_of_any_kind():
    torch.manual_seed(0)
    x, y = torch.randn(90, 5), torch.arange(90) % 3
    teacher, student = (nn.Sequential(nn.Linear(5, h), nn.Tanh(), nn.Linear(h, 3)) for h in (16, 4))
    fitted = VID.fit(student, teacher, x, y, method="kd+vid+vid-logits", updates=60)
    assert list(fitted.decoding_gain(x)) == ["1", "2"]
    assert fitted.surprise(x) == {}
    assert fitted.probabilities(x).shape == (90, 3)


def test_nothing_to_learn_from():
    x, _ = digits()
    teacher, student = networks()
    with pytest.raises(UserError, match="labels alone, and there are none"):
        VID.fit(student, teacher, x, None, method="student")


@pytest.mark.slow
def test_probe_trains_decoders_alone():
    x, y = digits()
    teacher, student = networks()
    VID.fit(student, teacher, x, y, method="student", updates=20)
    before = copy.deepcopy(student.state_dict())
    probes = [VID.probe(student, teacher, x, updates=updates, augment=False) for updates in (1, 100)]
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in probes[1].student.network.state_dict().items())
    first, last = (list(probe.decoding_gain(x).values()) for probe in probes)
    assert all(b > a for a, b in zip(first, last, strict=True))
    assert last[0] > 10


def test_unlabelled_images_alone():
    x, _ = digits()
    teacher, student = networks()
    before = copy.deepcopy(student.state_dict())
    fitted = VID.fit(student, teacher, x, None, method="vid", updates=5)
    assert torch.equal(before["2.weight"], student.state_dict()["2.weight"]), "no label, no gradient for the classifier"
    assert not torch.equal(before["1.0.weight"], student.state_dict()["1.0.weight"])
    assert fitted.probabilities(x).shape == (60, 10)


def test_batch_norm_of_pretrained_students_goes_on_learning():
    x, y = digits()
    teacher, student = networks()
    VID.fit(student, teacher, x, y, method="student", updates=2)
    before = student.state_dict()["1.1.running_mean"].clone()
    VID.fit(student, teacher, x, y, method="vid", updates=2)
    assert not torch.equal(student.state_dict()["1.1.running_mean"], before)


def test_networks_of_other_sizes_are_named():
    x, y = digits()
    _, student = networks()
    with pytest.raises(UserError, match="the teacher cannot take inputs of shape 1×16×16"):
        VID.fit(student, nn.Sequential(nn.Flatten(), nn.Linear(9, 10)), x, y)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x, y + 5), "labels from 5 to 14, but the network has outputs for 0 to 9"),
        (lambda x, y: (x.float().index_fill(0, torch.tensor([3]), torch.nan), y), "1 of 60 items hold NaN"),
        (lambda x, y: (x[:, :, :8], y), "cannot take items of shape 1×8×16"),
    ],
)
def test_bad_data_is_named(change, message):
    x, y = digits()
    teacher, student = networks()
    with pytest.raises(UserError, match=message):
        VID.fit(student, teacher, *change(x, y))


class Remembers(nn.Module):
    """A teacher that notes the first pixels of the images it sees."""

    def __init__(self, network):
        super().__init__()
        self.network, self.seen = network, set()

    def forward(self, x):
        self.seen |= set(x[:, 0, 0, 0].tolist())
        return self.network(x)


@pytest.mark.parametrize("labelled", [True, False])
def test_unlabelled_images_teach_too(labelled):
    """Both those with labels and those without pass through the teacher in training."""
    few, more = images(2), images(4, first=100)
    teacher, student = (build_network("conv4-4", (1, 16, 16), 3) for _ in range(2))
    teacher = Remembers(teacher)
    options = {"method": "vid", "unlabelled": more.items, "updates": 2, "batch": 18, "augment": False}
    VID.fit(student, teacher, few.items, few.labels if labelled else None, **options)
    assert teacher.seen == {*range(6), *range(100, 112)}


@pytest.mark.parametrize(("mirror", "expected"), [(True, CROPS), (False, LETTERS)])
def test_photographs_are_cut_and_letters_are_warped(monkeypatch, mirror, expected):
    used = []

    class Spy(DistillationTraining):
        def __init__(self, *arguments, augmentation, **options):
            used.append(augmentation)
            super().__init__(*arguments, augmentation=augmentation, **options)

    monkeypatch.setattr(inference.vid.student, "DistillationTraining", Spy)
    x, y = digits()
    teacher, student = networks()
    VID.fit(student, teacher, x, y, updates=1, mirror=mirror)
    VID.fit(student, teacher, x, y, updates=1, mirror=mirror, augment=False)
    assert used == [expected, None]


def test_temperature_is_an_option():
    x, y = digits()
    states = []
    for temperature in (None, 4.0, 8.0):
        teacher, student = networks()
        VID.fit(student, teacher, x, y, method="kd", updates=2, temperature=temperature)
        states.append(student.state_dict()["2.weight"].clone())
    assert torch.equal(states[0], states[1]), "KD's own is 4"
    assert not torch.equal(states[0], states[2])
    with pytest.raises(UserError, match="temperature"):
        VID.fit(student, teacher, x, y, method="kd", temperature=0.0)


def test_a_single_pair_of_layers_is_warned_of():
    flat = nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 49, 3))
    x, y = torch.rand(9, 1, 16, 16), torch.arange(9) % 3
    with pytest.warns(UserWarning, match="only one pair of layers was found"):
        VID.fit(flat, copy.deepcopy(flat), x, y, updates=1)
    VID.fit(flat, copy.deepcopy(flat), x, y, updates=1, pairs="1:1")


class TestMeasures:
    def fitted(self, count=600):
        x, y = digits(count // 10)
        return VID.fit(*reversed(networks()), x[:40], y[:40], updates=3), x

    def test_layers_are_read_a_few_hundred_at_a_time(self, monkeypatch):
        """Memory is bounded, and nothing depends on where batches end."""
        vid, x = self.fitted()
        sizes = []

        def counted(network, part, names):
            sizes.append(len(part))
            return features(network, part, names)

        monkeypatch.setattr("inference.vid.vid.features", counted)
        gains, entropies, maps = vid.decoding_gain(x), vid.entropies(x), vid.surprise(x)
        assert max(sizes) == 256
        monkeypatch.setattr("inference.vid.vid.AT_ONCE", 1000)
        assert gains == pytest.approx(vid.decoding_gain(x), rel=1e-5)
        assert entropies == pytest.approx(vid.entropies(x), rel=1e-5)
        assert all(len(values) == 600 for values in maps.values())
        torch.testing.assert_close(maps, vid.surprise(x), rtol=1e-4, atol=1e-4)

    def test_gain_is_that_of_the_decoders(self):
        vid, x = self.fitted()
        s, t = features(vid.student, x, ["1.14"])["1.14"], features(vid.teacher, x, ["1.14"])["1.14"]
        for entropy in ("diagonal", "full"):
            summed = DecodingGain(vid.model.decoders["1.14"], entropy)
            summed.add(s, t)
            assert vid.decoding_gain(x, entropy=entropy)["1.14"] == pytest.approx(summed.value(), rel=1e-4)

    def test_too_few_items_for_a_covariance_are_named(self):
        vid, x = self.fitted()
        with pytest.raises(UserError, match="8 units needs more than 4 values"):
            vid.decoding_gain(x[:4], entropy="full")
