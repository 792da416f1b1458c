"""Few-shot learning without forgetting: what chooses and what tests, the inner KL, every choice of the options."""

from types import SimpleNamespace

import pytest
import torch
from pyro.distributions import Categorical
from torch.distributions import kl_divergence

from data.base_and_new import BaseAndNewEpisode, BaseAndNewSampler
from data.episodes import EpisodeSampler, TaskSpec
from data.errors import UserError
from guides.tasks.families import PosteriorParameters
from inference.evaluation.evaluate import predictions
from inference.evaluation.predictive import Predictive
from inference.meta import base_and_new
from inference.meta.base_and_new import build_lwof, check_lwof, fit_lwof, halves, lwof_columns, lwof_records
from inference.meta.methods import sib
from inference.meta.options import SibOptions
from inference.meta.settings import VariantSettings, settings
from inference.runs.folder import RunFolder
from inference.runs.tensors import load_tensors, save_features
from models.networks.feature_space import FeatureSpace
from tests.conftest import classes_of, gaussian_bank, marked_splits, splits_of

TINY = {"way": 3, "queries": 4, "tasks": 16, "validations": 1, "test_tasks": 20, "progress": False, "holdout": 4}
TINY |= {"protocols": "lwof", "rank": 0, "validation_tasks": 20}


def options(**given) -> SibOptions:
    return SibOptions(**{"beta": 0.1, **TINY, **given})


def marked_run(folder) -> RunFolder:
    """A run folder whose features are marked, with held-out images whose last feature counts them."""
    parts = marked_splits()
    held = parts["train"]
    number = torch.arange(len(held.items)) % 20
    held_items = torch.cat([held.items[:, :-1], number[:, None].float()], dim=-1)
    run = RunFolder.create(folder / "run", "sib", "")
    save_features(run.features, {**parts, "held_out": type(held)(held_items, held.labels, held.class_names)})
    return run


def objective_and_episode(tasks=3, **given):
    bank = gaussian_bank(classes=9, dim=6)
    chosen = options(**given)
    variant = sib.variants(settings(VariantSettings, chosen))[0]
    objective = build_lwof(chosen, variant, bank).double()
    sampler = BaseAndNewSampler(EpisodeSampler(bank, TaskSpec(3, 1, 4)), bank, playing=True)
    return objective, sampler.sample(tasks, seed=1).to("cpu", dtype=torch.float64), sampler


def test_inner_steps_descend_the_kl_of_the_objective():
    """To the mixture of the task's own base components: by autograd, and unlike the mixture of all of them."""
    objective, episode, _ = objective_and_episode(beta=1.0)
    guide, prior = objective.guide, objective.model.prior
    known = tuple(h[episode.base_classes].detach() for h in prior.hyperparameters())
    θ = PosteriorParameters(*(t.detach().requires_grad_() for t in guide.start(*episode[:3], 3)))
    for task in range(3):
        q = torch.distributions.Independent(torch.distributions.Normal(θ.loc[task], θ.log_scale[task].exp()), 2)
        p = prior.distribution(tuple(h[task] for h in known), 3)
        expected = torch.autograd.grad(kl_divergence(q, p), tuple(θ))
        found = prior.kl_gradient(known, *θ)
        for part, whole in zip(found, expected, strict=True):
            torch.testing.assert_close(part[task], whole[task])
    everything = prior.kl_gradient(prior.hyperparameters(), *θ)
    assert not torch.allclose(everything[0], prior.kl_gradient(known, *θ)[0])


@pytest.mark.parametrize("steps", [0, 3])
def test_base_weights_have_no_rate_and_new_ones_have(steps):
    objective, episode, _ = objective_and_episode(steps=steps)
    rates = objective.terms(*episode).rates
    assert abs(float(rates["base_weights"].detach())) < 1e-9
    assert rates["weights"] > 0


def test_columns_are_accuracies_among_their_own_classes():
    objective, episode, sampler = objective_and_episode()
    columns = lwof_columns(objective, sampler, tasks=3, seed=1)
    episode, predicted = next(predictions(objective.model, objective.guide, sampler, tasks=3, seed=1, num_samples=16))
    logits = predicted.labels.logits
    p, known, half = logits.softmax(-1).mean(0), episode.base_classes.shape[1], episode.query_x.shape[1] // 2
    both = (p.argmax(-1) == episode.query_y).double().mean()
    new = logits[..., :half, known:].softmax(-1).mean(0).argmax(-1) == episode.query_y[:, :half] - known
    base = logits[..., half:, :known].softmax(-1).mean(0).argmax(-1) == episode.query_y[:, half:]
    assert float(columns.both.mean()) == pytest.approx(float(both))
    assert float(columns.novel.mean()) == pytest.approx(float(new.double().mean()))
    assert float(columns.base.mean()) == pytest.approx(float(base.double().mean()))


def columns_of(monkeypatch, logits):
    """Accuracies (novel, base, both) of one task with handmade ``logits`` ``[draws, 4, 4]``: base classes 0 and 1, new ones 2
    and 3; queries of classes 2, 3, 0 and 1."""
    labels, two = torch.tensor([[2, 3, 0, 1]]), torch.tensor([[0, 1]])
    episode = BaseAndNewEpisode(torch.zeros(1, 2, 1), two, torch.zeros(1, 4, 1), labels, 2, two)
    predicted = Predictive(Categorical(logits=logits[:, None]), None)
    monkeypatch.setattr(base_and_new, "predictions", lambda *_, **__: iter([(episode, predicted)]))
    columns = lwof_columns(SimpleNamespace(model=None, guide=None), None, tasks=1, seed=0)
    return [float(column) for column in columns]


def test_base_and_novel_are_among_their_own_classes_where_another_wins_over_all(monkeypatch):
    """The first query of either kind takes a class of the other one for more probable than its own, which is the first of its
    kind: wrong among all classes, right among its own. The second is right either way."""
    logits = [[5.0, 0, 2, 0], [0, 0, 0, 3], [2, 0, 5, 0], [0, 3, 0, 0]]
    assert columns_of(monkeypatch, torch.tensor([logits])) == [1.0, 1.0, 0.5]


def test_columns_are_of_probabilities_averaged_over_draws(monkeypatch):
    """One draw is very sure of a wrong class, two are fairly sure of the right one: together more probable, though the mean of
    the logits is higher for the wrong class."""
    right, wrong = [2, 3, 0, 1], [3, 2, 1, 0]
    sure, fairly = 20.0 * torch.eye(4)[wrong], 6.0 * torch.eye(4)[right]
    assert columns_of(monkeypatch, torch.stack([sure, fairly, fairly])) == [1.0, 1.0, 1.0]


def test_images_that_choose_a_checkpoint_do_not_test_it(tmp_path, monkeypatch):
    run = marked_run(tmp_path)
    seen = {}

    def spy(sampler):
        episode = sampler.sample(200, seed=0)
        half = episode.query_x.shape[1] // 2
        return {(int(c), int(n)) for c, n in zip(
            classes_of(episode.query_x[:, half:]).flatten(), episode.query_x[:, half:, -1].flatten(), strict=True
        )}, splits_of(episode.query_x[:, :half])  # fmt: skip

    def no_training(fit, samplers, *rest):
        seen["val"] = spy(samplers["val"])

    monkeypatch.setattr(base_and_new, "train_lwof", no_training)
    monkeypatch.setattr(base_and_new, "in_space", lambda sampler, space: sampler)

    def columns(objective, sampler, **given):
        seen["test"] = spy(sampler)
        assert not sampler.playing, "all base classes are known when it counts"
        return base_and_new.Columns(*torch.tensor([[0.4, 0.6]] * 3))

    monkeypatch.setattr(base_and_new, "lwof_columns", columns)
    lwof_records(options(), fit_lwof(options(), run))
    assert not seen["val"][0] & seen["test"][0]
    assert seen["val"][1] == {"val"}
    assert seen["test"][1] == {"test"}


def test_halves_are_of_every_class():
    kept, held = halves(marked_splits()["train"])
    assert kept.counts.tolist() == held.counts.tolist() == [10] * 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "variants"),
    [
        ({"beta": "0.1,1"}, ["distance-beta0.1-k3", "distance-beta0.1-k0", "distance-beta1-k3", "distance-beta1-k0"]),
        ({"predictor": "cosine,distance", "steps": 0}, ["cosine-beta0.1-k0", "distance-beta0.1-k0"]),
        ({"posterior": "delta"}, ["distance-delta-k3", "distance-delta-k0"]),
        ({"inner_samples": 2}, ["distance-beta0.1-k3", "distance-beta0.1-k0"]),
        ({"gradient": "exact"}, ["distance-beta0.1-k3", "distance-beta0.1-k0"]),
    ],
)
def test_every_choice_of_the_options_counts(given, variants, tmp_path):
    records = lwof_records(options(**given), fit_lwof(options(**given), marked_run(tmp_path)))
    assert [r.variant for r in records] == variants
    assert [r.saw_labels for r in records] == [given.get("gradient") == "exact" and r.steps > 0 for r in records]
    assert all(0 <= r.both_accuracy <= 1 for r in records)


def test_steps_that_validation_finds_to_cost_more_than_they_bring_are_left_out(tmp_path, monkeypatch, capsys):
    train = base_and_new.train_lwof

    def astray(fit, *rest):
        train(fit, *rest)
        if fit.objective.guide.steps:
            fit.objective.guide.rule.scale_shift.data.fill_(30.0)  # far too narrow

    monkeypatch.setattr(base_and_new, "train_lwof", astray)
    run = RunFolder.create(tmp_path / "run", "sib", "")
    bank = gaussian_bank()
    save_features(run.features, dict.fromkeys(["train", "val", "test", "held_out"], bank))
    fitted = fit_lwof(options(), run)
    some, none = sorted(fitted, key=lambda variant: -variant.steps)
    assert "left out" in capsys.readouterr().out
    saved = load_tensors(run.checkpoints / f"lwof-{some.name}.safetensors")[0]
    assert bool((saved["objective.guide.rule.scale_shift"] == 0).all())
    columns = [lwof_columns(fitted[v].objective, fitted[v].testing, tasks=20, seed=1) for v in (some, none)]
    assert all(torch.equal(some, none) for some, none in zip(*columns, strict=True))


def test_what_the_protocol_cannot_do_is_said_before_any_training(tmp_path):
    with pytest.raises(UserError, match="gradient=equivariant"):
        options(gradient="mlp")
    with pytest.raises(UserError, match="holdout=50"):
        options(holdout=1)
    with pytest.raises(UserError, match="no split held_out"):
        check_lwof(options(features="f.safetensors"), marked_splits()["train"], marked_splits())


def test_splits_that_cannot_be_told_apart_are_refused_before_any_training():
    """Each once ended in a traceback after all other training, or, with classes in another order, in wrong numbers."""
    base, given = marked_splits()["train"], options(features="f.safetensors")
    with pytest.raises(UserError, match="lower `way`"):
        check_lwof(options(way=6), base)
    names = base.class_names[::-1]
    with pytest.raises(UserError, match="in their order"):
        check_lwof(given, base, {"train": base, "held_out": type(base)(base.items, base.labels, names)})
    few = base.choose_per_class(1, 0)
    with pytest.raises(UserError, match="two images"):
        check_lwof(given, base, {"train": base, "held_out": few})
    check_lwof(given, base, {"train": base, "held_out": base.choose_per_class(2, 0)})


def test_map_of_features_is_trained_with_the_guide_and_read_back(tmp_path):
    run = marked_run(tmp_path)
    fitted = fit_lwof(options(steps=0), run)
    (fit,) = fitted.values()
    change = fit.space.change.detach()
    assert bool((change != 0).any()), "it is trained"
    again = fit_lwof(options(steps=0), run)
    torch.testing.assert_close(next(iter(again.values())).space.change.detach(), change, rtol=0, atol=0)
    raw, mapped = fit.tests.sample(2, seed=0), fit.testing.sample(2, seed=0)
    torch.testing.assert_close(mapped.query_x, fit.space(raw.query_x).detach(), rtol=1e-4, atol=1e-6)
    (frozen,) = fit_lwof(options(steps=0, train_features="none"), marked_run(tmp_path / "frozen")).values()
    assert not list(frozen.space.parameters())


def known_of(guide, episode):
    return tuple(h[episode.base_classes] for h in guide.prior.hyperparameters())


@pytest.mark.parametrize("posterior", ["gaussian", "delta"])
def test_base_classes_are_one_rival_in_the_inner_steps(posterior):
    """One step of plain gradients by hand: new classes alone move, by the expected outputs of all classes, the known ones as
    one and the support's labels behind it."""
    objective, episode, _ = objective_and_episode(beta=0.5, steps=1, predictor="cosine", posterior=posterior)
    guide, episode = objective.guide, episode.unlabelled()
    with torch.no_grad():
        guide.offset.value.fill_(0.7)
    known, gaussian = known_of(guide, episode), posterior == "gaussian"
    start, stepped = guide.unroll(*episode[:5], hyperparameters=known)

    def outputs(items, loc, log_scale):
        prepared = guide.predictor.prepare(items)
        if gaussian:
            return guide.predictor.mean_outputs(prepared, loc, (2 * log_scale).exp())
        return guide.predictor.outputs(prepared, loc)

    data = torch.zeros_like(start.loc)
    for items, labels, gradient in (
        (episode.query_x, None, guide.gradient),
        (episode.support_x, episode.support_y + 1, guide.anchor),
    ):
        new = outputs(items, start.loc, start.log_scale)
        rest = outputs(items, *known).logsumexp(-1, keepdim=True) - 0.7
        pulled = gradient(torch.cat([rest, new], dim=-1), labels)[..., 1:].detach()

        def moved(loc, items=items):
            return outputs(items, loc, start.log_scale)

        data = data + torch.autograd.functional.vjp(moved, start.loc, pulled)[1]
    size, own = guide.rule.log_size[0].exp(), (2 * start.log_scale).exp()
    if gaussian:
        data = data + guide.beta * guide.prior.kl_gradient(known, *start)[0]
        size = torch.minimum(size, guide.prior.narrowest(known) / own / guide.beta)
    torch.testing.assert_close(stepped.loc, start.loc - size * own * data)


def test_true_gradient_of_new_outputs_is_that_beside_all_known_classes():
    """The reference that sees labels: the known classes as one are all that new ones need to know of them."""
    objective, episode, _ = objective_and_episode(gradient="exact", posterior="delta")
    guide, known = objective.guide, episode.base_classes.shape[1]
    hyperparameters, items = known_of(guide, episode), guide.predictor.prepare(episode.query_x)
    (part,) = guide.evidence(*episode[:4], hyperparameters)
    new = guide.predictor.outputs(items, guide.start(*episode[:3], 3)[0])
    found = part.gradient(new, part.labels)
    every = torch.cat([guide.predictor.outputs(items, hyperparameters[0]), new], dim=-1)
    expected = guide.gradient(objective.model.offset(every, known), episode.query_y)
    torch.testing.assert_close(found, expected[..., known:])


@pytest.mark.parametrize("posterior", ["gaussian", "delta"])
def test_base_classes_keep_their_own_components(posterior):
    """After every step: what was learned of them from all base images is not moved by the queries of a task."""
    objective, episode, _ = objective_and_episode(posterior=posterior)
    known = known_of(objective.guide, episode)
    read = objective.guide.at_every_step()(*episode.unlabelled())
    for θ, ours in zip(read, known, strict=True):
        assert torch.equal(θ[:, :, : ours.shape[-2]], ours.expand(4, *ours.shape))
    start, after = read.loc[0, :, known[0].shape[-2] :], read.loc[-1, :, known[0].shape[-2] :]
    assert not torch.allclose(start, after), "the new classes move"


def test_offset_is_added_to_the_outputs_of_new_classes_alone():
    objective, episode, sampler = objective_and_episode(posterior="delta", steps=0)
    known = episode.base_classes.shape[1]

    def logits():
        predicted = next(predictions(objective.model, objective.guide, sampler, tasks=3, seed=1))[1]
        return predicted.labels.probs.log()

    def odds(logits):
        return logits[..., known:] - logits[..., :1], logits[..., 1:known] - logits[..., :1]

    before = odds(logits())
    with torch.no_grad():
        objective.model.offset.value.fill_(1.5)
    after = odds(logits())
    torch.testing.assert_close(after[0], before[0] + 1.5)
    torch.testing.assert_close(after[1], before[1])


def test_new_classes_far_from_every_query_leave_base_accuracy_as_it_is():
    """No new class draws near: base queries are then classified as if there were base classes alone."""
    objective, episode, sampler = objective_and_episode(steps=0)
    with torch.no_grad():
        objective.guide.start.coefficient.fill_(-100.0)
    columns = lwof_columns(objective, sampler, tasks=3, seed=1)
    episode, predicted = next(predictions(objective.model, objective.guide, sampler, tasks=3, seed=1, num_samples=16))
    half = episode.query_x.shape[1] // 2
    p = predicted.labels.logits.softmax(-1).mean(0)
    among_all = (p[:, half:].argmax(-1) == episode.query_y[:, half:]).double().mean(-1)
    assert torch.equal(among_all, columns.base)


def test_prior_starts_as_a_tight_classifier_of_the_base_classes(monkeypatch):
    monkeypatch.setattr(base_and_new, "CLASSIFIER_RATE", 0.1)
    bank = gaussian_bank(classes=9, dim=6)
    means = base_and_new.class_means(bank.items, bank.labels)
    weights = base_and_new.base_classifier(base_and_new.find_predictor("linear")(), bank, means, seed=0)

    def nll(weights):
        return torch.nn.functional.cross_entropy(bank.items @ weights.T, bank.labels)

    assert nll(weights) < nll(means) - 0.1
    prior = base_and_new.tight_prior(weights, means)
    torch.testing.assert_close(prior.loc, weights)
    assert bool((prior.log_scale.exp() < 0.5 * means.std(0)).all())


def test_gains_are_paired_with_the_reference_of_the_same_predictor_and_beta():
    objective, _, sampler = objective_and_episode()
    chosen = options(beta="0.1,2")
    variants = sib.variants(settings(VariantSettings, chosen))
    fitted = dict.fromkeys(variants, base_and_new.Fitted(objective, FeatureSpace(6), sampler))
    accuracies = {v: torch.tensor([0.2, 0.6]) + 0.1 * (v.steps > 0) + 0.05 * (v.beta > 1) * (v.steps > 0) for v in variants}
    given = iter(variants)

    def columns(*_, **__):
        return base_and_new.Columns(*[accuracies[next_variant] for next_variant in [next(given)] * 3])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base_and_new, "lwof_columns", columns)
        records = lwof_records(chosen, fitted)
    assert [r.both_gain and round(r.both_gain, 6) for r in records] == [0.1, None, 0.15, None]
    assert [r.base_gain_ci95 and round(r.base_gain_ci95, 6) for r in records] == [0, None, 0, None], "the tasks' spread cancels"
    assert all(r.novel_ci95 > 0.3 for r in records)


def test_table_names_the_beta_of_each_row():
    objective, _, _ = objective_and_episode()
    columns = base_and_new.Columns(*torch.tensor([[0.49, 0.51], [0.6, 0.6], [0.7, 0.7]]))
    chosen = options(beta="0.1,2")
    variants = sib.variants(settings(VariantSettings, chosen))
    text = base_and_new.format_lwof(base_and_new.make_record(chosen, v, objective, columns) for v in variants)
    assert [line.split()[1] for line in text.splitlines()] == ["β", "0.1", "0.1", "2", "2"]
    assert "50.00 ± 1.96" in text
