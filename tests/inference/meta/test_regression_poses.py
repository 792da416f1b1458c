"""Angles of letters, and their methods beside loops written out by hand."""

import itertools
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from data.errors import UserError
from data.sources.glyph_attributes import load_posed_glyphs
from inference.meta.choices import split_choice
from inference.meta.regression_comparison import MetaRegressionStudy
from inference.meta.regression_fits import Setup
from inference.meta.regression_methods import REGRESSION_METHODS
from inference.meta.regression_options import DEFAULT, RegressionOptions
from inference.meta.regression_scores import bound_of, exact_reference, score
from inference.meta.regression_tasks import LETTERS, TEST, VALIDATION, Problem, stream_seed
from inference.meta.settings import GuideSettings, MetaSchedule, VariantSettings
from inference.svi_meta import main as svi_meta

STEP, CODES = 0.01, 6  # α; numbers of a code


def setup_of(shot=3, queries=4, tasks=100):
    return Setup(Problem("poses", shot), GuideSettings(), MetaSchedule(tasks, batch=5, learning_rate=1e-3), queries)


def made(name, setup=None):
    name, given = split_choice(name)
    setup = setup or setup_of()
    variant = REGRESSION_METHODS[name].variants(VariantSettings(beta=(0.5,), given=given), setup.problem)[0]
    return variant, REGRESSION_METHODS[name].build(setup, variant).double()


def images(x):
    return x.unflatten(-1, (1, 16, 16))


def convolved(x, parameters):
    """Codes of images ``[n, 1, 16, 16]`` by three convolutions and a linear layer, from their eight ``parameters``."""
    for weight, bias in zip(parameters[0:6:2], parameters[1:6:2], strict=True):
        x = F.relu(F.conv2d(x, weight, bias, stride=2, padding=1))
    return x.flatten(1) @ parameters[6].T + parameters[7]


def layered(x, parameters):
    """A perceptron of rectified units, ``[n, D]`` to ``[n]``."""
    for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
        x = F.relu(x @ weight.T + bias)
    return (x @ parameters[-2].T + parameters[-1])[:, 0]


def parts(vector, like):
    """A vector of weights as tensors of the shapes of ``like``."""
    pieces = vector.split([p.numel() for p in like])
    return [piece.view(p.shape) for piece, p in zip(pieces, like, strict=True)]


def descended(forward, parameters, x, y, steps):
    """The parameters after so many gradient steps on the mean squared error."""
    for _ in range(steps):
        gradients = torch.autograd.grad((forward(x, parameters) - y).square().mean(), parameters, create_graph=True)
        parameters = [p - STEP * g for p, g in zip(parameters, gradients, strict=True)]
    return parameters


def test_a_task_is_a_letter_and_targets_are_tenths_of_the_range_of_its_angles():
    tasks = setup_of(shot=15, queries=15).draw(200, seed=1)
    assert tasks.support_x.shape == tasks.query_x.shape == (200, 15, 256)
    assert tasks.support_x.dtype == tasks.support_y.dtype == torch.float64
    assert (float(tasks.query_x.min()), float(tasks.query_x.max())) == (0.0, 1.0)
    every = torch.cat([tasks.support_y, tasks.query_y], 1)
    assert 4.9 < float(every.abs().max()) <= 5
    assert float(every.var()) == pytest.approx(100 / 12, rel=0.05)
    posed = load_posed_glyphs("train", 16)
    place = (posed.source.items.flatten(1).double() / 255 - tasks.query_x[0, 0]).abs().sum(-1).argmin()
    assert float(posed.targets[place]) == pytest.approx(float(tasks.query_y[0, 0]) * math.pi / 10, abs=1e-6)


def test_letters_of_each_split_are_others():
    seen = [
        {tuple(x.tolist()) for x in setup_of(shot=1, queries=1).draw(400, seed=3, split=split).query_x[:, 0].float()}
        for split in ("train", "val", "test")
    ]
    posed = [
        {tuple(x.tolist()) for x in load_posed_glyphs(split, 16).source.items.flatten(1).float() / 255}
        for split in ("train", "val", "test")
    ]
    assert all(some <= those for some, those in zip(seen, posed, strict=True))
    assert all(one.isdisjoint(other) for one, other in itertools.combinations(posed, 2))


def test_a_run_validates_and_tests_on_letters_of_other_scripts():
    study = MetaRegressionStudy(RegressionOptions(data="poses", shot=1, queries=2, test_tasks=40))
    for stream, split in ((VALIDATION, "val"), (TEST, "test")):
        seed = stream_seed(0, 20000, stream)
        assert torch.equal(study.tasks(stream).query_x, study.options.setup().draw(40, seed, split=split).query_x)


def test_what_is_usual_of_poses():
    options = RegressionOptions(data="poses")
    assert (options.problem.shot, options.queries, options.tasks, options.batch) == (15, 15, 20000, 10)
    assert (RegressionOptions().tasks, RegressionOptions().batch) == (50000, 50)
    assert (RegressionOptions(data="poses", tasks=7, batch=3).tasks, RegressionOptions(tasks=7).batch) == (7, 50)
    with pytest.raises(UserError, match="`shot=30` and `queries=15` need more than the 40 pictures"):
        RegressionOptions(data="poses", shot=30)
    with pytest.raises(UserError, match="platipus cannot be run on `data=poses`"):
        RegressionOptions(data="poses", methods="platipus")
    assert [variant.method for variant in options.variants()] == [split_choice(name)[0] for name in DEFAULT["poses"]]


def test_maml_is_a_loop_over_all_weights_of_the_network():
    setup = setup_of()
    _, fit = made("maml:steps=2", setup)
    tasks = setup.draw(2, seed=4)
    network = fit.guide.predictor.network.network
    like = [dict(network.named_buffers())[name] for name in fit.guide.predictor.network.shapes]
    start = [p.requires_grad_() for p in parts(fit.guide.start.loc.detach()[0].clone(), like)]
    assert len(start) == 14

    def forward(x, parameters):
        return layered(convolved(images(x), parameters[:8]), parameters[8:])

    expected = []
    for support_x, support_y, query_x in zip(*tasks[:3], strict=True):
        expected.append(forward(query_x, descended(forward, start, support_x, support_y, 2)))
    adapted = fit.guide.unroll(*tasks[:3], None, 1)[-1]
    found = fit.guide.predictor(tasks.query_x, adapted.loc)[..., 0]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-8, atol=1e-10)
    loss = torch.stack(expected).sub(tasks.query_y).square().sum()
    gradients = torch.cat([g.flatten() for g in torch.autograd.grad(loss, start)])
    (found - tasks.query_y).square().sum().backward()
    torch.testing.assert_close(fit.guide.start.loc.grad[0], gradients, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("penalty", ["decay", "weights:scale=1e-20"])
def test_without_noise_it_is_mamls_loop_on_codes(penalty):
    """σ of the encoder's weights is 0, or as good as 0."""
    setup = setup_of()
    _, fit = made(f"mr-maml:steps=2:test_steps=2:codes={CODES}:noise=1:penalty={penalty}:weight=1e-3", setup)
    tasks = setup.draw(2, seed=4)
    scorer = fit.model.scorer
    encoder = parts(fit.guide.loc.detach(), [dict(scorer.named_buffers())[name] for name in fit.model.shapes])
    shapes = scorer.scorer.guide.predictor.shapes
    like = [torch.zeros(size) for a, b in shapes for size in ((b, a), (b,))]
    start = [p.requires_grad_() for p in parts(scorer.scorer.guide.start.loc.detach()[0].clone(), like)]
    expected = []
    for support_x, support_y, query_x in zip(*tasks[:3], strict=True):
        support, query = (convolved(images(x), encoder) for x in (support_x, query_x))
        expected.append(layered(query, descended(layered, start, support, support_y, 2)))
    found = fit.model.labels(fit.guide.distribution().rsample(), *tasks[:3], 1).mean
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-8, atol=1e-10)


def test_the_papers_objective_counts_letters_as_tasks():
    """−log p of noise 1 is half the squared error: (W) of a batch is n K times ½ mean error + weight · KL, for n letters."""
    setup = setup_of()
    _, fit = made(f"mr-maml:codes={CODES}:test_steps=1:noise=1:weight=3e-4:scale=1e-8", setup)
    assert fit.model.num_tasks == LETTERS == 240
    assert fit.objective.elbo.beta == pytest.approx(3e-4 * 240 * 4)
    tasks = setup.draw(5, seed=5)
    rate = kl_divergence(Normal(fit.guide.loc, fit.guide.log_scale.exp()), Normal(0.0, 1.0)).sum()
    predicted = fit.model.labels(fit.guide.loc, *tasks[:3], 1).mean
    theirs = 0.5 * (predicted - tasks.query_y).square().mean() + 3e-4 * rate
    constant = 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(fit(tasks) / (5 * 4) - constant, theirs, rtol=1e-6, atol=1e-8)
    assert bound_of(0.5, 3.0, setup).tasks == 240


@pytest.mark.parametrize("name", ["mr-maml:steps=1:test_steps=1", "mr-cnp:width=8"])
def test_the_rate_of_codes_of_images_is_in_closed_form(name):
    setup = setup_of()
    _, fit = made(f"{name}:penalty=codes:codes={CODES}:noise=1:weight=0.3", setup)
    tasks = setup.draw(3, seed=6)
    parameters = [p.detach() for p in fit.guide.encoder.parameters()]
    mean, scale = convolved(images(tasks.query_x.flatten(0, 1)), parameters).chunk(2, dim=-1)
    scale = 1e-6 + F.softplus(scale)
    expected = 0.5 * (scale.square() + mean.square() - 1 - 2 * scale.log()).sum()
    terms = fit.objective.terms(*tasks)
    torch.testing.assert_close(terms.rate.detach(), expected)
    torch.testing.assert_close(terms.loss - terms.distortion, 0.3 * terms.rate)


def test_a_neural_process_of_images_reads_codes():
    setup = setup_of()
    _, fit = made("cnp:width=8:code=5:noise=1", setup)
    tasks = setup.draw(2, seed=7)
    scorer = fit.model.scorer
    assert scorer.scorer.decoder[0].in_features == 64 + 5
    parameters = list(scorer.encoder.parameters())
    support, query = (convolved(images(x[1]), parameters) for x in (tasks.support_x, tasks.query_x))
    said = scorer.scorer.encoder(torch.cat([support, tasks.support_y[1][:, None]], -1)).mean(0)
    expected = scorer.scorer.decoder(torch.cat([query, said.expand(4, -1)], -1))
    torch.testing.assert_close(scorer(*tasks[:3], 1)[1], expected)


def test_nothing_exact_is_known_of_them(tmp_path, monkeypatch):
    known = {"support_information": None, "transductive": False, "adapt_ms": 1.0, "adapted": 0}
    for name in ("dependence", "cost"):
        monkeypatch.setitem(score.__globals__, name, lambda fit, episode: known)
    setup = setup_of()
    tasks = setup.draw(18, seed=8, split="test")
    assert exact_reference(setup.problem, tasks, tmp_path) is None
    variant, fit = made("cnp:width=8", setup)
    record = score(fit, variant, setup, tasks, TEST)
    assert (record.regret, record.reference, record.exact_nll) == (None, None, None)


@pytest.mark.slow
def test_the_command(tmp_path):
    words = ["--data", "poses", "--shot", "4", "--tasks", "40", "--test-tasks", "18", "--queries", "4"]
    methods = "maml:steps=1,cnp:width=8:noise=1,mr-cnp:weight=1e-5:width=8,mr-maml:penalty=codes:test_steps=2:codes=6"
    run = svi_meta([*words, "--methods", methods, "--out", str(tmp_path / "run")])
    rows = [row for row in json.loads(run.metrics.read_text())["results"] if row["split"] == "test"]
    assert {row["method"] for row in rows} == {"maml", "cnp", "mr-cnp", "mr-maml"}
    assert all(row["reference"] is None and row["mse"] > 1 for row in rows)
    assert list(run.path.rglob("regret_against_time*"))
    assert not list(run.path.rglob("curves*"))
