"""``Learner.fit``: any method on what users have, as the documentation shows it."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import sibyl
from data.episodes import EpisodeSampler, TaskSpec
from data.errors import UserError
from data.items import ImageSplits
from inference.meta.fitting import Learner
from inference.meta.sib import SIB
from inference.predict import main as predict
from tests.conftest import ROOT, gaussian_bank, marked_images

QUICK = {"tasks": 16, "batch": 8, "validations": 1, "validation_tasks": 8, "way": 3, "queries": 3, "epochs": 0}
NETWORK = {"network_tasks": 8, "network_batch": 4, "backbone": "conv4-4"}


@pytest.fixture(scope="module")
def images():
    return marked_images(classes=6, images=10)


@pytest.fixture(scope="module")
def bank():
    return gaussian_bank(classes=20, images=8, dim=6)


def drawn(part):
    return EpisodeSampler(part, TaskSpec(way=3, shot=1, queries=2)).sample(4, seed=0)


def test_it_is_what_the_front_door_has():
    assert sibyl.Learner is Learner
    assert issubclass(SIB, Learner)


@pytest.mark.parametrize(
    ("method", "more", "own"),
    [
        ("anil:steps=2", {}, False),
        ("maml:steps=1:size=0.1", {}, True),
        ("prototypical", {"train_features": "all"}, True),
        ("nearest-mean", {}, False),
    ],
)
def test_any_method_is_fitted_to_images_saved_and_read_back(images, method, more, own, tmp_path):
    learner = Learner.fit(images, method=method, **QUICK, **NETWORK, **more)
    assert type(learner) is Learner
    assert (learner.variant.method, learner.variant.given) == tuple((*method.split(":", 1), "")[:2])
    assert (learner.own_network, learner.dataset) == (own, "marked")
    assert learner.spec == TaskSpec(3, 1, 3)

    task = drawn(images.test)
    predictive = learner.predictive(task)
    again = Learner.load(learner.save(tmp_path / "learner.safetensors"))
    assert type(again) is Learner
    assert torch.equal(again.predictive(task).probabilities(), predictive.probabilities())
    assert predictive.probabilities().shape == (4, 6, 3)

    scores = learner.evaluate(learner.embedded(images.test), learner.spec, split="test", tasks=6)
    assert 0 <= scores[learner.variant.steps].accuracy <= 1
    predicted = learner.predict(images.test.items[::10][:3], ["a", "b", "c"], images.test.items[:7])
    assert predicted.probabilities.shape == (7, 3)


def test_training_changes_what_is_trained(images):
    """And whole networks as far as the options for whole networks say."""
    starts = [
        Learner.fit(
            images, method="maml:steps=1:size=0.1", **QUICK, **NETWORK | {"network_learning_rate": rate}
        ).guide.start.loc
        for rate in (1e-6, 1e-2)
    ]
    assert float((starts[0] - starts[1]).detach().abs().max()) > 1e-4


def test_of_several_methods_the_best_on_validation_tasks_is_returned(bank, tmp_path):
    learner = Learner.fit(bank, method=["r2d2", "matching", "fine-tuning"], out=str(tmp_path / "run"), **QUICK)
    content = json.loads((tmp_path / "run" / "metrics.json").read_text())
    nll = {record["variant"]: record["nll"] for record in content["results"]}
    assert len(nll) == 3
    assert learner.variant.name == min(nll, key=nll.get)
    assert [r["variant"] for r in content["results"] if r["selected"]] == [learner.variant.name]
    assert Learner.load(tmp_path / "run").variant == learner.variant
    assert Learner.load(tmp_path / "run", "matching-cosine-k0").variant.method == "matching"


def test_what_is_said_of_tasks_is_the_posteriors_predictive(bank):
    learner = Learner.fit(bank, method="r2d2:posterior=full", beta=0.5, **QUICK)
    task = drawn(bank)
    found = learner.predictive(task, num_samples=6, seed=2)
    expected = learner.posterior(*task[:3]).predictive(num_samples=6, seed=2)
    assert found.num_draws == 6
    torch.testing.assert_close(found.labels.logits, expected.labels.logits, rtol=0, atol=0)
    torch.testing.assert_close(found.rate, expected.rate, rtol=0, atol=0)
    assert not torch.equal(learner.predictive(task, num_samples=6, seed=3).labels.logits, found.labels.logits)
    assert torch.equal(learner.predictive(task.unlabelled(), num_samples=6, seed=2).labels.logits, found.labels.logits)
    with pytest.raises(UserError, match="num_samples=0"):
        learner.predictive(task, num_samples=0)


def test_the_example_of_the_documentation_runs(tmp_path, monkeypatch):
    """As it stands there, on small images in place of letters, and for a moment."""
    page = (ROOT / "docs" / "systems" / "meta.md").read_text()
    (code,) = re.findall(r"```python\n(from sibyl import Learner, load_data\n\n.*?)```", page, re.S)
    short = "tasks=16, epochs=0, validations=1, validation_tasks=8, queries=3, backbone='conv4-4'"
    assert code.count("tasks=3000") == 1
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sibyl, "load_data", lambda name: marked_images(classes=6, images=60), raising=False)
    found: dict[str, Any] = {}
    exec(code.replace("tasks=3000", short), found)
    assert found["predicted"].probabilities.shape == (19, 5)
    assert list(found["scores"]) == list(range(11)), "after each of ten steps"
    assert (tmp_path / "anil.safetensors").exists()


def test_data_with_descriptions_train_on_them(images):
    described = replace(images, name="glyph-descriptions")
    learner = Learner.fit(described, method="prototypical:descriptions", **QUICK, backbone="conv4-4")
    assert learner.spec.described
    assert not Learner.fit(images, method="prototypical", **QUICK, backbone="conv4-4").spec.described
    with pytest.raises(UserError, match="classes of glyph-descriptions have one description each: leave out `shot`"):
        Learner.fit(described, method="prototypical", **QUICK, shot=5)


def test_predict_draws_the_tasks_that_a_run_with_descriptions_was_trained_on(bank, tmp_path):
    data = ImageSplits.of(bank, name="glyph-descriptions")
    learner = Learner.fit(data, method="prototypical", out=str(tmp_path / "run"), **QUICK)
    (record,) = predict(["--run", str(tmp_path / "run"), "--way", "3", "--queries", "3", "--tasks", "20"])
    how = {"split": "test", "tasks": 20}
    own = learner.evaluate(data.test, learner.spec, **how)[0].nll
    assert record.nll == pytest.approx(own, rel=1e-5)
    assert own != pytest.approx(learner.evaluate(data.test, replace(learner.spec, described=False), **how)[0].nll, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "mamm"}, "`method=mamm`: mamm is unknown.*maml"),
        ({"method": "maml:stps=5"}, "`method=maml:stps=5`: maml: no option 'stps' of this method: it has steps"),
        ({"method": "maml:steps=0"}, "`method=maml:steps=0`: maml: `steps=0`: must be a whole number, above 0"),
        ({"method": 3}, "`method=3`: 3 is unknown"),
        ({"method": ""}, "`method=`"),
        ({"method": "anil", "methods": "maml"}, "no option `methods`: did you mean `method`?"),
        ({"method": "anil", "shots": 3}, "no option `shots`: did you mean `shot`?"),
        ({"method": "anil", "way": 7}, "too few for 7-way tasks"),
        ({"method": "maml", "backbone": nn.Flatten()}, "maml builds the network it adapts by its name"),
    ],
)
def test_errors_are_one_line(images, options, message):
    with pytest.raises(UserError, match=message) as error:
        Learner.fit(images, **QUICK | options)
    assert "\n" not in str(error.value)


def test_features_have_no_network_to_adapt(bank):
    with pytest.raises(UserError, match="maml adapts a network for images, and a feature file has none"):
        Learner.fit(bank, method="maml", **QUICK)


def test_a_method_must_be_named(bank):
    with pytest.raises(TypeError, match="method"):
        Learner.fit(bank)
    with pytest.raises(UserError, match="no option `method`"):
        SIB.fit(bank, method="sib")
