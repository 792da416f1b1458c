"""A fitted learner: hand-made tasks, saving and loading, what it refuses."""

import json
from dataclasses import asdict

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from data.episodes import EpisodeSampler, TaskSpec
from data.errors import UserError
from data.seeding import mix_seed
from inference.meta.checkpoints import read_spec, read_variant, selected_name
from inference.meta.learner import TEST_SEED, FittedLearner
from inference.meta.mapping import feature_space
from inference.meta.options import SibOptions
from inference.meta.settings import GuideSettings, settings
from inference.meta.sib import SIB
from inference.meta.task_checks import checked_way
from inference.runs.files import write_json
from inference.runs.folder import RunFolder
from inference.runs.tensors import load_tensors, save_tensors
from models.networks.feature_network import FeatureNetwork
from tests.conftest import gaussian_bank, marked_images

BANK = gaussian_bank(classes=8, images=12, dim=10)


def learner(network=None, **options) -> FittedLearner:
    """Untrained, on features of the bank unless a network is given."""
    chosen = SibOptions(**{"beta": 0.1, "progress": False, **options})
    return build(chosen, BANK, network, "bank")


def build(chosen: SibOptions, bank, network, name: str) -> FittedLearner:
    variant, guide = chosen.variants()[0], settings(GuideSettings, chosen)
    space, means = feature_space(guide, variant.predictor, bank)
    return FittedLearner.build(variant, guide, chosen.spec(), space, means, network, name)


def task(labels=(0, 1, 2), queries=6):
    """Support of one item per label and some queries, without a dimension of tasks."""
    return BANK.items[: 12 * len(labels) : 12], torch.tensor(labels), BANK.items[-queries:]


def test_tasks_at_hand_are_scored_as_those_that_are_drawn():
    sib, spec = learner(), TaskSpec(3, 1, 4)
    drawn = sib.evaluate(BANK, spec, split="test", tasks=20)
    tasks = EpisodeSampler(BANK, spec).sample(50, seed=mix_seed(mix_seed(TEST_SEED), 0)).tasks(slice(20))
    scored = sib.evaluate_tasks(tasks)
    assert scored.keys() == drawn.keys() == {0, 1, 2, 3}
    assert all(asdict(scored[k]) == pytest.approx(asdict(drawn[k]), rel=1e-4) for k in drawn)
    assert sib.evaluate_tasks(tasks, steps=2).keys() == {0, 1, 2}
    with pytest.raises(UserError, match="number the classes of every task"):
        sib.evaluate_tasks(tasks._replace(support_y=tasks.support_y + 1))


def test_tasks_of_files_of_before_are_across_alphabets_and_not_by_descriptions():
    assert read_spec({"way": 4, "shot": 2, "queries": 3, "imbalance": None}) == TaskSpec(4, 2, 3)


class TestHandMadeTasks:
    def test_one_task_needs_no_dimension_of_tasks(self):
        posterior = learner().posterior(*task())
        assert posterior.probabilities().shape == (1, 6, 3)
        assert posterior.sample(7).shape[:3] == (7, 1, 3)

    def test_a_posterior_shows_as_one_line(self):
        shown = repr(learner().posterior(*task()))
        assert shown.startswith("TaskPosterior(tasks=1, support=3, queries=6, method='sib'")
        assert "\n" not in shown

    @pytest.mark.parametrize("labels", [(0, 2, 7), (1, 2, 3), (-1, 0, 1), (0, 0, 2)])
    def test_labels_that_leave_out_a_class_are_refused(self, labels):
        with pytest.raises(UserError, match="number the classes of every task 0, 1"):
            learner().posterior(*task(labels))

    def test_query_labels_of_another_shape_are_one_line(self):
        with pytest.raises(UserError, match=r"`query_y` has shape \(1, 3\).*\(1, 6\)"):
            learner().posterior(*task()).to_arviz(torch.zeros(1, 3, dtype=torch.long))

    def test_fit_asks_for_enough_of_every_class(self):
        with pytest.raises(UserError, match="fewer than shot"):
            SIB.fit(BANK)

    def test_every_task_has_every_class(self):
        assert checked_way(torch.tensor([[0, 1, 2], [2, 0, 1]])) == 3
        with pytest.raises(UserError, match="every task"):
            checked_way(torch.tensor([[0, 1, 2], [1, 0, 1]]))

    def test_wrong_features_are_one_line(self):
        support_x, support_y, query_x = task()
        with pytest.raises(UserError, match="features of 10 numbers"):
            learner().posterior(support_x[:, :4], support_y, query_x[:, :4])

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda x, y, q: (x[:2], y, q), "do not fit together"),
            (lambda x, y, q: (x[None], y[None], torch.stack([q, q])), "do not fit together"),
            (lambda x, y, q: (x[None], torch.stack([y, y]), q[None]), "do not fit together"),
            (lambda x, y, q: (x[None], y, q), "dimension of tasks"),
            (lambda x, y, q: (x, y[None], q), "dimension of tasks"),
            (lambda x, y, q: (x, y, q[0]), "dimension of tasks"),
            (lambda x, y, q: (x, y, q[:0]), "query_x is empty"),
            (lambda x, y, q: (x[:0], y[:0], q), "support_y is empty"),
            (lambda x, y, q: (x[:1], y[:1], q), "at least two"),
            (lambda x, y, q: (x, y.float(), q), "whole numbers"),
            (lambda x, y, q: (x, y.tolist(), q), "support_y must be a tensor, not list"),
            (lambda x, y, q: (x.numpy(), y, q), "support_x must be a tensor, not ndarray"),
            (lambda x, y, q: (x * torch.nan, y, q), "not finite"),
        ],
    )
    def test_tensors_that_do_not_fit_are_one_line(self, change, words):
        """Several of these once broadcast silently into predictions."""
        with pytest.raises(UserError, match=words):
            learner().posterior(*change(*task()))

    def test_other_types_of_numbers_are_taken(self):
        support_x, support_y, query_x = task()
        expected = learner().posterior(support_x, support_y, query_x).probabilities()
        found = learner().posterior(support_x.double(), support_y.int(), query_x.double()).probabilities()
        torch.testing.assert_close(found, expected)

    def test_steps_and_draws_are_numbers_of_things(self):
        with pytest.raises(UserError, match="steps=-1"):
            learner().posterior(*task(), steps=-1)
        with pytest.raises(ValueError, match="num_samples = 0"):
            learner().posterior(*task()).probabilities(num_samples=0)

    def test_exact_gradient_asks_for_the_query_labels(self):
        exact, labels = learner(gradient="exact"), torch.tensor([0, 1, 2, 0, 1, 2])
        with pytest.raises(UserError, match="query_y"):
            exact.posterior(*task())
        assert exact.posterior(*task(), steps=0).probabilities().shape == (1, 6, 3)
        assert exact.posterior(*task(), query_y=labels).episode.query_y.shape == (1, 6)
        with pytest.raises(UserError, match="query_y"):
            exact.posterior(*task(), query_y=labels[:4])

    def test_mean_weights_of_a_hierarchical_posterior(self):
        """Not those of one draw of its hyperparameters."""
        chosen = learner(prior="hierarchical")
        for log_scale in chosen.guide.hyper.log_scales:
            log_scale.data.fill_(-1.0)
        posterior = chosen.posterior(*task())
        torch.testing.assert_close(posterior.loc, posterior.sample(4000).mean(0), atol=0.05, rtol=0)

    def test_one_query(self):
        support_x, support_y, query_x = task(queries=1)
        assert learner().posterior(support_x, support_y, query_x).probabilities().shape == (1, 1, 3)
        with pytest.raises(UserError, match="at least two"):
            learner(gradient="mlp", way=3).posterior(support_x, support_y, query_x)

    @pytest.mark.parametrize("options", [{"initialisation": "learned"}, {"initialisation": "queries"}, {"gradient": "mlp"}])
    def test_another_way_than_it_was_built_for_is_refused(self, options):
        with pytest.raises(UserError, match="built for 5 classes per task, not 3"):
            learner(**options).posterior(*task())

    def test_zero_shot_has_an_empty_support(self):
        empty = BANK.items[:0][None], torch.empty(1, 0, dtype=torch.long)
        posterior = learner(initialisation="queries", way=3).posterior(*empty, BANK.items[None, :6])
        assert posterior.probabilities().shape == (1, 6, 3)
        data = posterior.to_arviz(num_samples=16)
        assert set(data.groups()) == {"posterior", "prior", "predictions", "predictions_constant_data"}

    def test_double_precision(self):
        chosen = learner()
        chosen.objective.double()
        assert chosen.posterior(*task()).probabilities().dtype == torch.float64

    def test_trajectory_reads_the_guide_after_every_step(self):
        chosen = learner(steps=2)
        steps = chosen.trajectory(*task())
        assert len(steps) == 3
        torch.testing.assert_close(steps[-1].loc, chosen.posterior(*task()).loc)
        torch.testing.assert_close(steps[0].loc, chosen.posterior(*task(), steps=0).loc)
        assert len(chosen.trajectory(*task(), steps=4)) == 5

    def test_rate_is_the_closed_form(self):
        chosen = learner()
        posterior = chosen.posterior(*task())
        q = posterior.sample(20_000)
        prior = Normal(chosen.model.prior.loc, chosen.model.prior.log_scale.exp())
        expected = kl_divergence(Normal(q.mean(0), q.std(0)), prior).sum((-2, -1)).detach()
        torch.testing.assert_close(posterior.rate(), expected, rtol=0.01, atol=0)


class TestImages:
    def sib(self):
        images = marked_images()
        network = FeatureNetwork("conv4-8", images.image_shape)
        network.standardize.fit(images.train.items)
        features = gaussian_bank(dim=network.num_features)
        chosen = SibOptions(beta=0.1, progress=False)
        return build(chosen, features, network, "marked"), images.test.items

    def test_floats_are_the_same_images_as_bytes(self):
        sib, images = self.sib()
        torch.testing.assert_close(sib.features(images[:4].float() / 255), sib.features(images[:4]))

    def test_images_of_another_kind_are_one_line(self):
        sib, images = self.sib()
        for wrong, words in (
            (images[:2].float(), "0, 1"),
            (images[:2].expand(-1, 3, -1, -1), "1×16×16"),
            (images[:2, :, :8], "1×16×16"),
        ):
            with pytest.raises(UserError, match=words):
                sib.features(wrong)


class TestFiles:
    def saved(self, chosen: FittedLearner, folder) -> RunFolder:
        run = RunFolder.create(folder / "run", "sib", "")
        chosen.save(run.checkpoints / f"{chosen.variant.name}.safetensors")
        record = {"selected": True, "trained_steps": chosen.variant.steps, "variant": chosen.variant.name}
        write_json(run.metrics, {"results": [record]})
        return run

    @pytest.mark.parametrize(
        "options",
        [{"rank": 7}, {"rank": 10}, {"rank": 0}, {"steps": 0}, {"posterior": "delta"}, {"prior": "mixture"},
         {"prior": "hierarchical"}, {"initialisation": "learned", "way": 3}, {"methods": "nearest-mean"}],
    )  # fmt: skip
    def test_loads_what_was_saved(self, options, tmp_path):
        """Rank = D keeps its map, K = 0 is found, and every choice predicts the same."""
        bank = gaussian_bank(classes=12, dim=10)
        chosen = SibOptions(**{"beta": 0.1, "progress": False, **options})
        first = build(chosen, bank, None, "bank")
        again = FittedLearner.load(self.saved(first, tmp_path))
        assert again.variant == first.variant
        assert again.dataset == "bank"
        assert again.space.rank == first.space.rank
        torch.testing.assert_close(
            again.posterior(*task()).probabilities(), first.posterior(*task()).probabilities(), rtol=0, atol=0
        )

    @pytest.mark.parametrize("rank", [0, 4, 10])
    def test_loads_files_of_versions_before_learners(self, rank, tmp_path):
        """Old names of parameters, no method, no rank: the same predictions."""
        first = learner(rank=rank) if rank < 8 else learner(rank=0)
        if rank == 10:
            first.space.directions.copy_(torch.linalg.qr(torch.randn(10, 10)).Q)
            first.space.rank = 10
        run = self.saved(first, tmp_path)
        path = run.checkpoints / f"{first.variant.name}.safetensors"
        tensors, metadata = load_tensors(path)
        old = {"start.": "initialisation.", "rule.log_size": "log_inner_lr", "rule.scale_shift": "scale_shift"}
        for new, name in old.items():
            tensors = {k.replace(f"guide.{new}", f"guide.{name}"): v for k, v in tensors.items()}
        variant = {"predictor": "distance", "beta": 0.1, "steps": 3}
        options = {**metadata["settings"], **metadata["spec"], "data": "glyphs", "posterior": "gaussian", "out": None}
        kept = {"options": options, "base_classes": metadata["base_classes"], "variant": variant}
        save_tensors(path, tensors, kept)
        record = {"selected": True, "trained_steps": 3, "predictor": "distance", "beta": 0.1}
        write_json(run.metrics, {"results": [record]})
        torch.testing.assert_close(
            FittedLearner.load(run).posterior(*task()).probabilities(), first.posterior(*task()).probabilities()
        )

    def test_loads_guides_of_versions_before_gates(self, tmp_path):
        """They have none, and predict what they did."""
        first = learner()
        first.guide.gate = None
        run = self.saved(first, tmp_path)
        path = run.checkpoints / f"{first.variant.name}.safetensors"
        tensors, metadata = load_tensors(path)
        del metadata["settings"]["gate"]
        save_tensors(path, tensors, metadata)
        again = FittedLearner.load(run)
        assert again.guide.gate is None
        expected = first.posterior(*task()).probabilities()
        torch.testing.assert_close(again.posterior(*task()).probabilities(), expected, rtol=0, atol=0)

    def test_old_delta_runs_are_found_by_their_old_name(self, tmp_path):
        run = RunFolder.create(tmp_path / "run", "sib", "")
        record = {"selected": True, "trained_steps": 3, "predictor": "cosine", "beta": None}
        write_json(run.metrics, {"results": [record]})
        assert selected_name(run) == "cosine-beta0-k3"
        old = {"variant": {"predictor": "cosine", "beta": 0.0, "steps": 3}, "options": {"posterior": "delta"}}
        assert asdict(read_variant(old)) | {"beta": None, "posterior": "delta"} == asdict(read_variant(old))

    def test_fit_leaves_a_folder_that_loads_by_itself(self, tmp_path):
        images = marked_images(classes=6, images=12)
        options = {"epochs": 0, "tasks": 16, "validations": 1, "way": 2, "queries": 3, "backbone": "conv4-8"}
        fitted = SIB.fit(images, out=str(tmp_path / "run"), **options)
        again = SIB.load(tmp_path / "run")
        assert isinstance(again, SIB)
        assert again.variant == fitted.variant
        assert json.loads((tmp_path / "run" / "metrics.json").read_text())["dataset"] == "marked"
        assert fitted.dataset == again.dataset == "marked", "not the default of an option that nobody gave"
        x = images.test.items
        one, two = (s.posterior(x[[0, 12]], torch.arange(2), x[1:5]).probabilities() for s in (fitted, again))
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_draws_of_different_tasks_are_independent():
    """They once shared their noise, and a correlation of 1 went into posterior.nc."""
    chosen = learner()
    support_x, support_y, query_x = task()
    two = [torch.stack([t, t]) for t in (support_x, support_y, query_x)]
    draws = chosen.posterior(*two).sample(3000)
    first, second = draws.flatten(2).unbind(1)
    correlation = torch.corrcoef(torch.stack([first[:, 0], second[:, 0]]))[0, 1]
    assert abs(float(correlation)) < 0.08
    pairs = torch.corrcoef(torch.stack([first[::2, 0], first[1::2, 0]]))[0, 1]
    assert abs(float(pairs)) < 0.1, "nor are draws mirrored in pairs"


@pytest.mark.parametrize(
    "content",
    [
        {"command": "svi_bnn", "dataset": "curve", "results": []},
        {"command": "svi_sib", "dataset": "linear", "results": [{"selected": True, "beta": 1.0}]},
    ],
)
def test_runs_of_another_kind_have_no_selected_variant(content, tmp_path):
    run = RunFolder(tmp_path)
    write_json(run.metrics, content)
    with pytest.raises(UserError, match=f"is a run of {content['command']} on {content['dataset']}"):
        selected_name(run)


@pytest.mark.parametrize("name", ["support_x", "support_y", "query_x", "query_y"])
def test_sparse_tensors_are_refused_by_name(name):
    support_x, support_y, query_x = task()
    given = {"support_x": support_x, "support_y": support_y, "query_x": query_x, "query_y": torch.zeros(6)}
    with pytest.raises(UserError, match=f"{name} must be a dense tensor"):
        learner().posterior(**{**given, name: given[name].float().to_sparse()})
