"""The LwoF protocol: tasks of base and new classes, training, and the Novel, Base and Both columns."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from data.episodes import EpisodeSampler
from data.items import LabelledItems
from data.seeding import mix_seed, seeded
from guides.tasks.base_and_new import ForgetNothingGuide
from inference.elbo import RateDistortionELBO, RateDistortionModule
from inference.evaluation.metrics import confidence_interval
from inference.meta.build import build_gradient, build_initialisation
from inference.meta.fit import map_items, train
from inference.meta.options import SibOptions
from inference.meta.report import TEST_SEED, Record
from inference.meta.training import MetaSchedule, MetaTraining
from inference.runs.folder import RunFolder
from inference.runs.options import split_commas
from inference.runs.tensors import load_features, load_state, save_tensors
from models.networks.feature_space import FeatureSpace, class_means
from models.tasks.base_and_new import ForgetNothingModel
from models.tasks.predictors import PREDICTORS
from models.tasks.priors import MixturePrior


class BaseAndNewEpisode(NamedTuple):
    """An episode whose queries belong to base classes (labels first) or to new ones.

    Attributes:
        support_x, support_y: of the new classes, ``[tasks, way * shot, D]`` and ``[tasks, way * shot]``.
        query_x: new then base queries, ``[tasks, 2 * way * queries, D]``.
        query_y: ``0 .. base - 1`` for base classes, ``base .. base + way - 1`` for new ones.
        base_classes: ``[tasks, base]``, which prior components are the known classes.
    """

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor
    base_classes: Tensor

    def to(self, device: torch.device | str) -> BaseAndNewEpisode:
        """Move every tensor."""
        return BaseAndNewEpisode(*(tensor.to(device) for tensor in self))


class BaseAndNewSampler:
    """Draws tasks with as many base queries as new ones.

    Args:
        new: draws the new classes; for training, from the base classes themselves.
        base: features of the base classes that base queries come from.
        playing: the new classes are base classes that play a part: they are left out of the known ones.
    """

    def __init__(self, new: EpisodeSampler, base: LabelledItems, *, playing: bool) -> None:
        self.new, self.base, self.playing = new, base, playing
        self._by_class = torch.argsort(base.labels, stable=True)
        self._start = base.counts.cumsum(0) - base.counts

    def sample(self, tasks: int, *, seed: int) -> BaseAndNewEpisode:
        """``tasks`` tasks; equal seeds give equal tasks."""
        support, query, query_y, classes = self.new.sample_indices(tasks, seed=seed)
        generator = torch.Generator().manual_seed(mix_seed(seed, 1))
        known = torch.ones(tasks, self.base.num_classes, dtype=torch.bool)
        if self.playing:
            known.scatter_(1, classes, False)
        base_classes = known.nonzero()[:, 1].reshape(tasks, -1)
        base_y = torch.randint(base_classes.shape[1], query_y.shape, generator=generator)
        chosen = base_classes.gather(1, base_y)
        number = (torch.rand(chosen.shape, generator=generator) * self.base.counts[chosen]).long()
        base_x = self.base.items[self._by_class[self._start[chosen] + number]]
        items, spec = self.new.source.items, self.new.spec
        return BaseAndNewEpisode(
            items[support],
            torch.arange(spec.way).repeat_interleave(spec.shot).expand(tasks, -1),
            torch.cat([items[query], base_x], dim=1),
            torch.cat([query_y + base_classes.shape[1], base_y], dim=1),
            base_classes,
        )


class LwofTraining(MetaTraining):
    """Meta-training on tasks whose new classes are played by base classes; validated on the Both accuracy."""

    validation: BaseAndNewSampler

    def on_train_epoch_end(self) -> None:
        columns = lwof_columns(self.objective, self.validation, tasks=self.schedule.validation_tasks, seed=self.seed)[-1]
        self.log_dict({"val/accuracy": columns["both"][0], "val/loss": -columns["both"][0]}, prog_bar=True)


@torch.no_grad()
def lwof_columns(
    objective: RateDistortionModule, sampler: BaseAndNewSampler, *, tasks: int, seed: int, num_samples: int = 16
) -> list[dict[str, tuple[float, float]]]:
    """Accuracy and its 95 % half-width after 0, 1, … K steps: ``novel`` among new classes, ``base`` among base classes,
    ``both`` among all, each on its own queries."""
    model, guide = objective.model, objective.guide
    correct: dict[tuple[int, str], list[Tensor]] = {}
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, tasks, 25):
        episode = sampler.sample(min(25, tasks - start), seed=mix_seed(seed, start))
        support_x, support_y, query_x, query_y, base_classes = episode.to(guide.log_inner_lr.device)
        loc, log_scale = model.prior.loc[base_classes], model.prior.log_scale[base_classes]
        known, half = base_classes.shape[1], query_x.shape[1] // 2
        for k, theta in enumerate(guide.unroll(support_x, support_y, query_x, known_weights=loc)):
            means, scales = torch.cat([loc, theta.loc], -2), torch.cat([log_scale, theta.log_scale], -2).exp()
            noise = torch.randn(num_samples, 1, *means.shape[-2:], generator=generator).to(means)
            logits = model.predictor(query_x, means + scales * noise)

            def right(part: Tensor, labels: Tensor) -> Tensor:
                return (part.softmax(-1).mean(0).argmax(-1) == labels).float().mean(-1).cpu()

            novel = right(logits[:, :, :half, known:], query_y[:, :half] - known)
            base = right(logits[:, :, half:, :known], query_y[:, half:])
            for column, values in (("novel", novel), ("base", base), ("both", right(logits, query_y))):
                correct.setdefault((k, column), []).append(values)
    steps = max(k for k, _ in correct) + 1
    rows = [{c: torch.cat(correct[k, c]) for c in ("novel", "base", "both")} for k in range(steps)]
    return [{c: (float(v.mean()), confidence_interval(v)) for c, v in row.items()} for row in rows]


def lwof_records(options: SibOptions, run: RunFolder) -> list[Record]:
    """Train with K steps and with none, and test both: records with ``protocol`` ``lwof`` and three accuracies.

    Base queries are images held out of pre-training.
    """
    features = load_features(run.features)
    predictor_name = split_commas(options.predictor)[0]
    base = features["train"]
    dim = base.items.shape[-1]
    space = FeatureSpace(dim, options.feature_rank(predictor_name, base.num_classes, dim)).fit(base.items, base.labels)
    mapped = {split: map_items(space, part) for split, part in features.items()}
    spec, records = options.spec(imbalance=None), []
    for steps in dict.fromkeys((0, options.steps)):
        objective = build_lwof(options, predictor_name, steps, class_means(mapped["train"].items, mapped["train"].labels))
        training = BaseAndNewSampler(EpisodeSampler(mapped["train"], spec), mapped["train"], playing=True)
        validation = BaseAndNewSampler(EpisodeSampler(mapped["val"], spec), mapped["held_out"], playing=False)
        testing = BaseAndNewSampler(EpisodeSampler(mapped["test"], spec), mapped["held_out"], playing=False)
        finished = run.checkpoints / f"lwof-k{steps}.safetensors"
        if not finished.exists():
            schedule = MetaSchedule(options.tasks, options.batch, options.learning_rate, options.validations, 100)
            with run.timed(f"lwof-k{steps}"), seeded(options.seed):
                module = LwofTraining(objective, training, validation, schedule, seed=options.seed)
                train(
                    module,
                    replace(options.loop, precision="32-true"),
                    run,
                    f"lwof-k{steps}",
                    epochs=schedule.validations,
                    monitor="val/loss",
                    mode="min",
                )
            save_tensors(finished, objective.state_dict(), {})
        load_state(objective, finished)
        columns = lwof_columns(objective, testing, tasks=options.test_tasks, seed=mix_seed(TEST_SEED))[-1]
        record = {"split": "test", "protocol": "lwof", "steps": steps, "way": spec.way, "shot": spec.shot}
        record |= {"queries": spec.queries, "balanced": True, "episodes": options.test_tasks, "beta": options.betas[0]}
        for column, (accuracy, ci95) in columns.items():
            record |= {f"{column}_accuracy": accuracy, f"{column}_ci95": ci95}
        records.append(record)
    return records


def build_lwof(options: SibOptions, predictor_name: str, steps: int, means: Tensor) -> RateDistortionModule:
    """Model and guide with a mixture prior, one component a base class; the smallest β of the options."""
    with seeded(options.seed):
        prior, predictor = MixturePrior.from_class_means(means), PREDICTORS[predictor_name]()
        guide = ForgetNothingGuide(
            prior,
            predictor,
            build_initialisation(options, means),
            build_gradient(options),
            num_features=means.shape[-1],
            steps=steps,
            inner_lr=options.inner_lr,
            learn_inner_lr=options.learn_inner_lr,
            beta=options.betas[0],
            whiten=options.whiten,
        )
    return RateDistortionELBO(beta=options.betas[0])(ForgetNothingModel(prior, predictor), guide)


def format_lwof(records: list[Record]) -> str:
    """The three columns as text."""
    lines = [f"{'K':>2}  {'Novel %':>14}  {'Base %':>14}  {'Both %':>14}"]
    for record in records:
        cells = (f"{100 * record[f'{c}_accuracy']:.2f} ± {100 * record[f'{c}_ci95']:.2f}" for c in ("novel", "base", "both"))
        lines.append(f"{record['steps']:>2}  " + "  ".join(f"{cell:>14}" for cell in cells))
    return "\n".join(lines)
