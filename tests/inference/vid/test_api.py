"""VID as a library: what it takes, files of students, other types, predictions.

The functions whose names start with ``script`` are whole programs, but for their data: the documentation quotes them.
"""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from data.errors import UserError
from inference.runs.tensors import load_tensors
from inference.vid.vid import VID
from tests.inference.vid.conftest import images, network


def mlp(hidden=4, outputs=3):
    return nn.Sequential(nn.Linear(5, hidden), nn.Tanh(), nn.Linear(hidden, outputs))


def vectors(n=60):
    x = torch.randn(n, 5)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def script_own_networks(teacher, pairs, path):
    """A trained ``teacher`` and a ``Dataset`` of (item, class) teach a student of one's own."""
    student = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    vid = VID.fit(student, teacher, DataLoader(pairs, batch_size=32), method="kd+vid", updates=80, learning_rate=0.05)
    vid.save(path)
    there = VID.load(path, student=nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))).to(torch.float64)
    return vid.predict(DataLoader(pairs, batch_size=32)), there.predict(DataLoader(pairs, batch_size=32))


def test_own_networks_and_loader_saved_and_read_elsewhere(tmp_path):
    x, y = vectors()
    teacher = VID.fit(mlp(16), mlp(), x, y, method="student", updates=80, learning_rate=0.05).student
    here, there = script_own_networks(teacher, TensorDataset(x, y), tmp_path / "vid.safetensors")
    assert float((here.labels == y).float().mean()) > 0.6
    assert there.probabilities.dtype == torch.float64
    torch.testing.assert_close(there.probabilities, here.probabilities.double(), atol=1e-6, rtol=0)
    assert float(here.mutual_information.max()) < 1e-6, "weights are points"


@pytest.mark.parametrize("heteroscedastic", [False, True])
def test_decoders_come_back_with_the_teacher_and_predictions_without(tmp_path, heteroscedastic):
    data, teacher = images(4), network("conv4-8", 1)
    options = {"method": "kd+vid+vid-logits", "updates": 2, "heteroscedastic": heteroscedastic, "temperature": 3.0}
    vid = VID.fit(network(), teacher, data.items, data.labels, **options)
    path = vid.save(tmp_path / "vid.safetensors")
    fresh = network(seed=5)
    before = [p.clone() for p in fresh.parameters()]
    again = VID.load(path, student=fresh, teacher=teacher)
    assert all(torch.equal(a, b) for a, b in zip(before, fresh.parameters(), strict=True)), "the given one is copied"
    torch.testing.assert_close(again.probabilities(data.items), vid.probabilities(data.items))
    assert again.decoding_gain(data.items) == pytest.approx(vid.decoding_gain(data.items), rel=1e-4)
    assert (again.method, again.strength, again.kind) == (vid.method, vid.strength, vid.kind)
    assert again.to(torch.float64).decoding_gain(data.items) == pytest.approx(vid.decoding_gain(data.items), rel=1e-3)
    alone = VID.load(path, student=fresh)
    (tensors, described), (found, said) = (load_tensors(p) for p in (path, alone.save(tmp_path / "again.safetensors")))
    assert described == said
    assert all(torch.equal(tensors[name], found[name]) for name in tensors.keys() | found.keys())
    torch.testing.assert_close(alone.predict(data.items).probabilities, vid.predict(data.items).probabilities)
    with pytest.raises(UserError, match="read without its teacher: give `teacher`"):
        alone.decoding_gain(data.items)


def test_arrays_lists_of_images_and_names_are_taken():
    data, teacher = images(2), network("conv4-8", 1)
    pictures = [Image.fromarray(item[0].numpy()) for item in data.items]
    names = [data.class_names[i] for i in data.labels]
    states = []
    for x, y in (
        (data.items, data.labels),
        (data.items.numpy(), data.labels.numpy()),
        (pictures, names),
        (TensorDataset(data.items, data.labels), None),
    ):
        vid = VID.fit(network(), teacher, x, y, updates=2)
        states.append(vid.student.state_dict()["2.weight"].clone())
        predicted = vid.predict(x)
        assert predicted.class_names == (("a", "b", "c") if x is pictures else ("0", "1", "2"))
        assert predicted.probabilities.shape == (6, 3)
    assert all(torch.equal(state, states[0]) for state in states)
    assert len(vid.predict(data.items[:1])) == 1


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.randn(6, 5), torch.rand(6), "y holds real numbers: classes are whole numbers"),
        (torch.randn(6, 5), [0, 1], "6 items and 2 targets"),
        ([Image.new("L", (16, 16)), Image.new("L", (8, 8))], [0, 1], "item 1 is 1×8×8 where the first is 1×16×16"),
        (torch.randn(0, 5), None, "x has no items"),
        ("here", None, "here"),
        (torch.full((6, 5), torch.nan), torch.zeros(6).long(), "6 of 6 items hold NaN"),
    ],
)
def test_bad_inputs_are_named_in_one_line(x, y, message):
    with pytest.raises(UserError, match=message) as error:
        VID.fit(mlp(), mlp(8), x, y, updates=1)
    assert "\n" not in str(error.value)


def test_bad_files_and_items_are_named(tmp_path):
    x, y = vectors(20)
    vid = VID.fit(mlp(), mlp(8), x, y, updates=1)
    path = vid.save(tmp_path / "vid.safetensors")
    save_file({"weight": torch.ones(2)}, str(tmp_path / "foreign.safetensors"))
    for call, message in (
        (lambda: VID.load(path), "fitted to a network of your own: give `student`"),
        (lambda: VID.load(path, student=mlp(9)), "belongs to another configuration"),
        (lambda: VID.load(path, student=nn.Linear(5, 3)), "belongs to another student"),
        (lambda: VID.load(tmp_path / "foreign.safetensors"), "holds no student"),
        (lambda: VID.load(tmp_path / "none.safetensors"), "missing, damaged"),
        (lambda: vid.save(tmp_path / "vid.pt"), "must end in"),
        (lambda: vid.predict(x[:, :4]), "x has shape 20×4: give n×5, as the network was fitted to items of shape 5"),
        (lambda: vid.predict(np.full((2, 5), np.nan)), "x holds NaN"),
        (lambda: vid.to("nowhere"), "cannot go to nowhere"),
    ):
        with pytest.raises(UserError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
