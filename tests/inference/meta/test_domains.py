"""A small run on tasks over domains: what is trained, scored, chosen and kept, and that no query label is seen."""

import json

import pytest
import torch

from data.errors import UserError
from data.sources.domains import LetterDomains
from inference.evaluation.evaluate import batches
from inference.evaluation.posterior import infer
from inference.meta import domains
from inference.meta.domain_figures import domain_sheet
from inference.meta.domains import DomainOptions, DomainStudy, drawn_pools, fit_classifier, mapped
from inference.meta.learner import FittedLearner
from inference.predict import main as predict
from inference.svi_sib import main

SMALL = {
    "way": 3,
    "queries": 2,
    "image_size": 16,
    "backbone": "conv4-4",
    "epochs": 1,
    "beta": 0.1,
    "steps": 2,
    "tasks": 32,
    "validations": 1,
    "validation_tasks": 6,
    "test_tasks": 5,
    "progress": False,
}


@pytest.fixture(scope="module")
def small():
    patch = pytest.MonkeyPatch()
    patch.setattr(domains, "CLASSIFIER_DOMAINS", 16)
    patch.setattr(domains, "GUIDE_DOMAINS", 16)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    """A finished run."""
    out = tmp_path_factory.mktemp("domains") / "run"
    words = [f"--{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in SMALL.items()]
    return main(["--data", "letters-domains", f"--out={out}", *words])


@pytest.fixture(scope="module")
def refit(finished):
    """Study, data and what the run has trained, read back."""
    study = DomainStudy(DomainOptions(**SMALL))
    data = study.load()
    return study, data, study.fit(data, finished)


def test_records_are_of_domains_without_a_support(finished):
    content = json.loads(finished.metrics.read_text())
    rows = content["results"]
    assert content["dataset"] == "letters-domains"
    assert {row["shot"] for row in rows} == {0}
    assert {row["way"] for row in rows} == {3}
    tested = [row for row in rows if row["split"] == "test"]
    assert {row["episodes"] for row in tested} == {5}
    found = {(row["variant"], row["steps"], row["balanced"]) for row in tested}
    guides = {("distance-beta0.1-k2", k) for k in (0, 1, 2)} | {("distance-beta0.1-k0", 0)}
    plain = {("classifier-cosine-k0", 0), ("batch-norm-cosine-k0", 0)}
    assert found == {(*who, balanced) for who in guides | plain for balanced in (True, False)}
    assert {row["variant"] for row in rows if row["selected"]} == {"distance-beta0.1-k2", "distance-beta0.1-k0"}


def test_a_run_leaves_posteriors_pictures_and_what_it_was_trained_on(finished):
    assert finished.posterior.exists()
    pictures = {path.stem for path in finished.plots.iterdir()}
    assert pictures == {"training_curves", "accuracy_by_step", "reliability", "domains", "objective_by_step"}
    assert (finished.path / "domains.safetensors").exists()


def test_a_run_goes_on_from_what_is_there_to_the_same_numbers(finished, monkeypatch):
    before = json.loads(finished.metrics.read_text())
    monkeypatch.setattr(DomainStudy, "figures", lambda *given: {})
    monkeypatch.setattr(DomainStudy, "save", lambda *given: None)
    finished.metrics.unlink()
    main(["--resume", str(finished.path)])
    after = json.loads(finished.metrics.read_text())
    assert after["results"] == before["results"]


def test_each_test_domain_is_scored_once(refit, monkeypatch):
    _, data, fitted = refit
    expected = data.tasks("test", slice(0, 5), 2)
    assert torch.equal(fitted.pools["standard"].query_y, expected.query_y)
    learner = next(iter(fitted.learners.values()))
    assert {record.episodes for record in domains.guide_records(learner, fitted.pools, "standard")} == {5}
    monkeypatch.setattr("inference.evaluation.evaluate.TASKS_AT_ONCE", 2)
    parts = [part.query_x for part in batches(expected, 5, 0)]
    assert [len(part) for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat(parts), expected.query_x)


def test_query_labels_are_not_seen(refit):
    learner = next(iter(refit[2].learners.values()))
    tasks = mapped(learner, refit[2].pools["standard"])
    wrong = tasks._replace(query_y=tasks.query_y.flip(-1))
    read = [infer(learner.model, learner.guide, known).probabilities() for known in (tasks, wrong, tasks.unlabelled())]
    assert torch.equal(read[0], read[1])
    assert torch.equal(read[0], read[2])


def test_the_guide_starts_at_the_letters_of_training_domains(refit):
    options = DomainOptions(**SMALL)
    pools, learner = refit[2].pools, next(iter(refit[2].learners.values()))
    fresh = domains.build_learner(options, learner.variant, pools["train"], learner.network, refit[1])
    train = mapped(fresh, pools["train"])
    means = [train.query_x[train.query_y == letter].mean(0) for letter in range(3)]
    torch.testing.assert_close(fresh.guide.start.loc.detach(), torch.stack(means), atol=1e-5, rtol=1e-4)


def test_a_learner_reads_images_of_a_domain(finished, refit):
    learner = FittedLearner.load(finished)
    images = refit[1].tasks("test", slice(0, 5), 2)
    own = next(iter(refit[2].learners.values()))
    path = learner.trajectory(images.support_x, images.support_y, images.query_x)
    assert len(path) == 3
    expected = infer(own.model, own.guide, mapped(own, refit[2].pools["standard"])).probabilities()
    torch.testing.assert_close(path[-1].probabilities(), expected, atol=1e-4, rtol=1e-3)
    with pytest.raises(UserError, match="built for 3 classes"):
        learner.check_way(5)


def test_the_classifier_has_seen_other_domains_than_the_guide(small):
    options = DomainOptions(**SMALL)
    data = LetterDomains(16, way=3)
    guide = drawn_pools(options, data)["train"]()
    labelled = data.tasks("train", slice(0, domains.CLASSIFIER_DOMAINS), 2)
    both = torch.cat([guide.query_x.flatten(1), labelled.query_x.flatten(1)])
    assert len(torch.unique(both, dim=0)) == len(both) == 32
    counts = torch.stack([torch.bincount(labels, minlength=3) for labels in guide.query_y])
    assert (counts[8:] == 2).all(), "half of them balanced"
    assert not (counts[:8] == 2).all(), "and half not"


def test_a_read_back_classifier_is_the_trained_one(finished, refit):
    again = fit_classifier(DomainOptions(**SMALL), refit[1], finished)
    images = refit[1].tasks("val", slice(0, 2), 2).query_x
    assert torch.equal(again.probabilities(images), refit[2].classifier.probabilities(images))


def test_the_sheet_shows_letters_and_readings(refit):
    learner = next(iter(refit[2].learners.values()))
    figure = domain_sheet(learner, refit[1], about="a run")
    words = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert len(figure.axes) == 3
    assert words.count("K = 0") == words.count("K = 2") == 3
    assert set(words) - {"K = 0", "K = 2"} <= {"A", "B", "C"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"initialisation": "support"}, "`initialisation=learned` or `initialisation=queries`"),
        ({"protocols": "lwof", "holdout": 4}, "no new classes"),
        ({"shot": 5}, "no use for `shot=5`"),
        ({"features": "x", "root": "y"}, "no use for `root=y`, `features=x`"),
    ],
)
def test_what_means_nothing_here_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        DomainOptions(**{**SMALL, **options})


def test_defaults_are_those_of_the_data_set_wherever_it_is_named(tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text("data: letters-domains\nsteps: 1\n")
    for words in (["--data=letters-domains", "--way=40"], ["--config", str(config), "--way", "40"]):
        with pytest.raises(UserError, match="26 letters"):
            main(words)
    with pytest.raises(UserError, match="letters-domains"):
        main(["--data", "letter-domains"])


def test_prediction_of_few_shot_tasks_is_refused(finished):
    for words in ([], ["--support", "here", "--query", "there"]):
        with pytest.raises(UserError, match="no image is labelled"):
            predict(["--run", str(finished.path), *words])
