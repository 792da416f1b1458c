"""Decoders and the distillation model against torch.distributions, closed-form information and the plain student."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from guides.empty import EmptyGuide
from inference.elbo import RateDistortionELBO
from models.distillation.decoders import SMALLEST_VARIANCE, build_decoder, information_bound, marginal_entropy, surprise_map
from models.distillation.losses import Transfer, knowledge_distillation
from models.distillation.model import DistillationModel, Pair
from models.distributions.layer import LayerNormal
from models.networks.layers import capture, features


def networks():
    teacher = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    teacher.append(nn.Linear(6 * 16, 3))
    student = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 64, 5), nn.Linear(5, 3))
    return teacher, student


class TestDecoders:
    def test_vector_density_is_equation_three(self, float64):
        decoder = build_decoder((4,), (3,))
        s, t = torch.randn(6, 4), torch.randn(6, 3)
        sigma = (F.softplus(decoder.alpha) + SMALLEST_VARIANCE).sqrt()
        mean = F.linear(s, decoder.mean[-1].weight, decoder.mean[-1].bias)
        expected = -(sigma.log() + (t - mean).square() / (2 * sigma**2) + 0.5 * math.log(2 * math.pi)).sum(-1)
        torch.testing.assert_close(decoder(s).log_prob(t), expected)
        torch.testing.assert_close(decoder(s).log_prob(t), torch.distributions.Normal(mean, sigma).log_prob(t).sum(-1))

    def test_spatial_density_is_equation_four(self, float64):
        decoder = build_decoder((4, 8, 8), (3, 8, 8)).eval()
        s, t = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 8, 8)
        mean, sigma = decoder.mean(s), (F.softplus(decoder.alpha) + SMALLEST_VARIANCE).sqrt()
        assert sigma.shape == (3, 1, 1)
        terms = torch.distributions.Normal(mean, sigma.expand(3, 8, 8)).log_prob(t)
        torch.testing.assert_close(decoder(s).log_prob(t), terms.sum((1, 2, 3)))

    @pytest.mark.parametrize("shape", [(3,), (3, 4, 5)])
    @pytest.mark.parametrize("heteroscedastic", [False, True])
    def test_density_term_by_term(self, float64, shape, heteroscedastic):
        decoder = build_decoder((4, 8, 8), shape, heteroscedastic=heteroscedastic).eval()
        nn.init.normal_(decoder.alpha)
        for p in decoder.parameters():
            nn.init.normal_(p)
        s, t = torch.randn(7, 4, 8, 8), torch.randn(7, *shape)
        q = decoder(s)
        terms = torch.distributions.Normal(q.mean, q.variance.sqrt()).log_prob(t)
        torch.testing.assert_close(q.log_prob_of_units(t), terms)
        torch.testing.assert_close(q.log_prob(t), terms.flatten(1).sum(-1))
        loc, scale = q.mean.detach().requires_grad_(), decoder.alpha.detach().clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda loc, scale: LayerNormal(loc, scale.exp()).log_prob(t), (loc, scale))

    def test_draws_have_the_moments(self, float64):
        q = LayerNormal(torch.randn(2, 3, 2, 2), torch.rand(3, 1, 1) + 0.1)
        draws = q.rsample((40_000,))
        assert q.log_prob(draws[:5]).shape == (5, 2)
        torch.testing.assert_close(draws.mean(0), q.mean, atol=0.03, rtol=0)
        torch.testing.assert_close(draws.var(0), q.variance, atol=0.05, rtol=0)

    @pytest.mark.parametrize("student", [(4,), (4, 8, 8), (4, 2, 2), (4, 3, 5)])
    @pytest.mark.parametrize("teacher", [(3,), (3, 4, 4)])
    @pytest.mark.parametrize("heteroscedastic", [False, True])
    def test_any_shapes(self, student, teacher, heteroscedastic):
        decoder = build_decoder(student, teacher, heteroscedastic=heteroscedastic, variance=2.0)
        q = decoder(torch.randn(5, *student))
        assert (q.batch_shape, q.event_shape) == ((5,), teacher)
        torch.testing.assert_close(q.variance, torch.full_like(q.variance, 2.0), atol=1e-4, rtol=0)

    def test_sequences_are_refused(self):
        with pytest.raises(ValueError, match="student's layer has shape"):
            build_decoder((7, 4), (3,))

    def test_bound_reaches_gaussian_information_and_never_exceeds_it(self, float64):
        """t = A s + noise: I = ½ log det(I + A Aᵀ/σ²) for s ~ N(0, I); H(t) is known, and the decoder is of the right form."""
        a, noise = torch.randn(3, 4), 0.6
        covariance = a @ a.T + noise**2 * torch.eye(3)
        entropy = 0.5 * torch.logdet(2 * math.pi * math.e * covariance)
        information = float(0.5 * torch.logdet(torch.eye(3) + a @ a.T / noise**2))
        decoder = build_decoder((4,), (3,))
        optimizer = torch.optim.Adam(decoder.parameters(), 0.05)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 800)

        def draw(n):
            s = torch.randn(n, 4)
            return s, s @ a.T + noise * torch.randn(n, 3)

        for step in range(800):
            s, t = draw(512)
            loss = -decoder(s).log_prob(t).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % 100 == 99:
                s, t = draw(20_000)
                with torch.no_grad():
                    values = decoder(s).log_prob(t)
                error = 3 * float(values.std()) / 20_000**0.5
                assert float(entropy + values.mean()) < information + error
        assert float(entropy + values.mean()) == pytest.approx(information, rel=0.02)


class TestInformation:
    def test_marginal_entropy_is_that_of_the_fitted_gaussian(self, float64):
        t = 2 + 3 * torch.randn(500, 4, 3, 3)
        mean, std = t.mean((0, 2, 3), keepdim=True), t.std((0, 2, 3), correction=0, keepdim=True)
        expected = -torch.distributions.Normal(mean, std).log_prob(t).sum((1, 2, 3)).mean()
        torch.testing.assert_close(marginal_entropy(t), expected)
        units = torch.randn(500, 2)
        expected = 0.5 * (2 * math.pi * math.e * units.var(0, correction=0)).log().sum()
        torch.testing.assert_close(marginal_entropy(units), expected)

    @pytest.mark.parametrize("shape", [(5,), (5, 4, 4)])
    def test_bound_is_zero_for_a_decoder_that_ignores_the_student(self, float64, shape):
        scale = torch.rand(shape[0], *(1 for _ in shape[1:])) + 0.5
        s, t = torch.randn(300, *shape), 1 + scale * torch.randn(300, *shape)
        decoder = build_decoder(shape, shape)
        before = float(information_bound(decoder, s, t))
        decoder.ignore_student(t)
        numbers = math.prod(shape)
        assert before < -0.2 * numbers
        assert -0.05 * numbers < float(information_bound(decoder, s, t)) < 0
        last = [m for m in decoder.mean.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
        nn.init.zeros_(last.weight)
        assert float(information_bound(decoder, s, t)) == pytest.approx(0, abs=1e-6 * numbers)

    @pytest.mark.parametrize("variance", [2e-3, 0.5, 30.0, 1e4])
    def test_variances_of_any_size_can_be_started_from(self, variance):
        t = variance**0.5 * torch.tensor([[-1.0], [1.0]])
        decoder = build_decoder((2,), (1,))
        decoder.ignore_student(t)
        torch.testing.assert_close(decoder.variance(torch.zeros(1, 2)).squeeze(), torch.tensor(variance), rtol=1e-4, atol=0)

    def test_surprise_adds_up_to_the_density(self, float64):
        decoder = build_decoder((4, 8, 8), (3, 4, 4), heteroscedastic=True).eval()
        s, t = torch.randn(6, 4, 8, 8), torch.randn(6, 3, 4, 4)
        maps = surprise_map(decoder, s, t)
        assert maps.shape == (6, 4, 4)
        torch.testing.assert_close(maps.sum((1, 2)), -decoder(s).log_prob(t))


class TestDistillation:
    def test_loss_is_task_loss_minus_weighted_log_densities(self, float64):
        teacher, student = networks()
        x, y = torch.randn(6, 1, 8, 8), torch.randint(3, (6,))
        pairs = [Pair("3", "1", 0.3), Pair("5", "3", 2.0)]
        model = DistillationModel(student, teacher, pairs, x).eval()
        taught = features(teacher, x, ["3", "5"])
        terms = RateDistortionELBO()(model, EmptyGuide()).terms(x, y, taught)
        assert set(terms.distortions) == {"labels", "teacher.3", "teacher.5"}
        torch.testing.assert_close(terms.distortions["labels"], F.cross_entropy(student(x), y, reduction="sum"))
        with capture(student, ["1", "3"]) as found:
            student(x)
        for pair in pairs:
            expected = -pair.weight * model.decoders[pair.teacher](found[pair.student]).log_prob(taught[pair.teacher]).sum()
            torch.testing.assert_close(terms.distortions[f"teacher.{pair.teacher}"], expected)

    def test_weight_zero_is_the_plain_student_bit_for_bit(self):
        x, y = torch.randn(32, 1, 8, 8), torch.randint(3, (32,))
        trained = []
        for distil in (True, False):
            torch.manual_seed(0)
            teacher, student = networks()
            if distil:
                model = DistillationModel(student, teacher, [Pair("3", "1", 0.0)], x)
                objective = RateDistortionELBO()(model, EmptyGuide())
                taught = features(teacher, x, ["3"])
            optimizer = torch.optim.SGD(student.parameters(), 0.01)
            for _ in range(5):
                loss = (
                    objective(x, y, taught) if distil else -torch.distributions.Categorical(logits=student(x)).log_prob(y).sum()
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            trained.append([p.detach().clone() for p in student.parameters()])
        for a, b in zip(*trained, strict=True):
            assert torch.equal(a, b)

    def test_other_methods_are_factors_of_the_same_program(self, float64):
        teacher, student = networks()
        x, y = torch.randn(6, 1, 8, 8), torch.randint(3, (6,))
        chosen = [("5", "4", Transfer.KD), ("5", "3", Transfer.LWF), ("3", "1", Transfer.FITNET), ("3", "1", Transfer.AT)]
        chosen += [("3", "1", Transfer.NST), ("3", "1", Transfer.VID)]
        pairs = [Pair(t, s, 0.1 * (i + 1), transfer) for i, (t, s, transfer) in enumerate(chosen)]
        model = DistillationModel(student, teacher, pairs, x).eval()
        assert model.teacher_layers == ["5", "3"]
        taught = features(teacher, x, model.teacher_layers)
        terms = RateDistortionELBO()(model, EmptyGuide()).terms(x, y, taught)
        assert set(terms.distortions) == {"labels", "kd.5", "lwf.5", "fitnet.3", "at.3", "nst.3", "teacher.3"}
        with capture(student, ["1", "3", "4"]) as found:
            student(x)
        for pair, module in zip(pairs[:5], model.transfers, strict=False):
            expected = pair.weight * module(found[pair.student], taught[pair.teacher]).sum()
            torch.testing.assert_close(terms.distortions[pair.site], expected)
        expected = 0.1 * knowledge_distillation(found["4"], taught["5"]).sum()
        torch.testing.assert_close(terms.distortions["kd.5"], expected)

    def test_teacher_does_not_change_and_hooks_do_not_leak(self):
        teacher, student = networks()
        teacher.train()
        before = {name: value.clone() for name, value in teacher.state_dict().items()}
        x = torch.randn(4, 1, 8, 8)
        model = DistillationModel(student, teacher, [Pair("3", "1")], x)
        objective = RateDistortionELBO()(model, EmptyGuide())
        objective(x, torch.zeros(4, dtype=torch.long), features(teacher, x, ["3"])).backward()
        assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
        assert all(p.grad is None for p in teacher.parameters())
        assert teacher.training
        with pytest.raises(RuntimeError), capture(student, ["1"]):
            student(torch.randn(1, 3, 8, 8))
        for network in (teacher, student):
            assert not any(module._forward_hooks for module in network.modules())

    def test_unlabelled_images_train_through_the_layers(self):
        teacher, student = networks()
        x = torch.randn(4, 1, 8, 8)
        model = DistillationModel(student, teacher, [Pair("3", "1")], x)
        RateDistortionELBO()(model, EmptyGuide())(x, None, features(teacher, x, ["3"])).backward()
        assert bool((student[0].weight.grad != 0).any())
        assert student[4].weight.grad is None

    @pytest.mark.parametrize(
        ("pair", "size", "message"),
        [
            (Pair("nine", "1"), 8, r"no layer 'nine': choose from 0, 1, 2, 3, 4, 5"),
            (Pair("3", "head"), 8, r"no layer 'head': choose from 0, 1, 2, 3, 4"),
            (Pair("3", "1", -1.0), 8, "must not be negative"),
            (Pair("3", "1"), 10, "cannot take inputs of shape 1×10×10"),
            (Pair("5", "3", 1.0, Transfer.KD), 8, "lwf keeps a head"),
            (Pair("3", "3", 1.0, Transfer.AT), 8, "at compares maps"),
        ],
    )
    def test_bad_input_is_named(self, pair, size, message):
        with pytest.raises(ValueError, match=message):
            DistillationModel(*reversed(networks()), [pair], torch.randn(2, 1, size, size))

    def test_a_pair_given_twice_is_named(self):
        with pytest.raises(ValueError, match=r"teacher\.3 is given twice"):
            DistillationModel(*reversed(networks()), [Pair("3", "1"), Pair("3", "0")], torch.randn(2, 1, 8, 8))
