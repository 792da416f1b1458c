"""The table of rules of other authors beside ours: what chooses settings, which tasks are tested, how pairs are formed."""

import json
import os
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from benchmarks import few_shot_peers, few_shot_rules
from benchmarks.few_shot_peers import (
    best_steps,
    columns_of,
    examine,
    learner_rows,
    main,
    run_learner,
    run_readings,
    run_rule,
    tune,
    validation_columns,
)
from benchmarks.few_shot_rules import Preparation, Rule, easyfsl_rules, pt_map, tim, transport
from benchmarks.few_shot_table import ONE, OWN, Row, key_of, peer_rows, table, verdict
from data.episodes import EpisodeSampler, TaskSpec
from data.errors import UserError
from data.seeding import mix_seed
from inference.evaluation.evaluate import predictions, readings
from inference.meta.learner import TEST_SEED, FittedLearner
from inference.meta.mapping import feature_space, map_items
from inference.meta.options import SibOptions
from inference.meta.settings import GuideSettings, settings
from inference.runs.folder import RunFolder
from inference.runs.tensors import save_features
from tests.conftest import gaussian_bank, marked_splits, splits_of

FEATURES = marked_splits(classes=6, images=80)
COLUMNS = {"a": TaskSpec(), "b": TaskSpec(shot=5, imbalance=2.0)}
SMALL = {"tasks": 6, "validation_tasks": 4, "own_tasks": 6}


def answers(setting, episode):
    """A peer that is right in all classes below the first hyper-parameter, on the split that the second names, or all."""
    (split,) = splits_of(episode.query_x)
    known = setting["classes"] if setting["split"] in (split, "all") else 0
    return torch.where(episode.query_y < known, episode.query_y, (episode.query_y + 1) % episode.way)


def fake(classify=answers, **options) -> Rule:
    return Rule("fake", {"classes": (1, 2, 3), "split": ("val", "test")}, classify, **options)


def learner(bank) -> FittedLearner:
    """Untrained, of three steps."""
    chosen = SibOptions(beta=0.1, progress=False)
    variant, guide = chosen.variants()[0], settings(GuideSettings, chosen)
    space, means = feature_space(guide, variant.predictor, bank)
    return FittedLearner.build(variant, guide, chosen.spec(), space, means, None, "marked")


def run_folder(path) -> str:
    run = RunFolder.create(path, "svi_sib", "")
    save_features(run.features, FEATURES)
    made = learner(FEATURES["train"])
    made.save(run.checkpoints / f"{made.variant.name}.safetensors", network=False)
    record = {"split": "val", "selected": True, "trained_steps": 3, "variant": made.variant.name}
    run.metrics.write_text(json.dumps({"results": [record]}))
    return str(path)


class TestSettings:
    def test_validation_tasks_alone_choose_and_test_tasks_alone_are_tested(self):
        seen = []

        def watched(setting, episode):
            seen.append((splits_of(episode.query_x), json.dumps(setting)))
            return answers(setting, episode)

        kept = examine(fake(watched), FEATURES, COLUMNS, {}, **SMALL)
        assert kept[ONE] == kept[OWN]["a"] == kept[OWN]["b"] == {"classes": 3, "split": "val"}
        assert {setting for splits, setting in seen if splits == {"test"}} == {json.dumps(kept[ONE])}
        assert (
            kept["tests"][key_of(kept[ONE])]["a"]["right"] == "0 0 0 0 0 0"
        )  # what would have been right on test tasks was not chosen

    def test_every_hyper_parameter_is_improved_for_all_columns_and_for_each(self):
        best = {"both": (7, 2), "a": (7, 2), "b": (1, 4)}

        def score(setting, column):
            x, y = best[column]
            return -abs(setting["x"] - x) - abs(setting["y"] - y) - 10 * (column == "b" and setting["x"] != 1)

        rule = Rule("grid", {"x": range(10), "y": range(10)}, answers)
        looked = {}
        one, own = tune(rule, ["a"], score, looked)
        assert (one["x"], one["y"]) == best["a"]
        assert len(looked) < 60, "far from all hundred"
        one, own = tune(rule, ["a", "b"], score, {})
        assert (own["b"]["x"], own["b"]["y"]) == best["b"]
        assert own["a"] == {"x": 7, "y": 2}
        assert one["x"] == 1, "of which b suffers least"

    def test_the_published_setting_is_kept_where_nothing_is_better(self):
        assert tune(fake(), ["a"], lambda setting, column: 0.5, {})[0] == {"classes": 1, "split": "val"}

    def test_what_was_done_before_is_not_done_again(self):
        done, kept = [], {}

        def once(setting, episode):
            (split,) = splits_of(episode.query_x)
            done.append((split, key_of(setting), episode.support_x.shape))
            if len(done) == stop:
                raise KeyboardInterrupt
            return answers(setting, episode)

        stop = 8
        with pytest.raises(KeyboardInterrupt):
            examine(fake(once), FEATURES, COLUMNS, kept, **SMALL)
        stop, interrupted = None, done.pop()
        examine(fake(once), FEATURES, COLUMNS, kept, **SMALL)
        assert len(done) == len(set(done)) == 6 * 2 + 2
        assert interrupted in done

    def test_columns_of_more_classes_than_validation_has(self):
        columns = columns_of([20])
        assert validation_columns(fake(), columns, 16)["20-way 1-shot"].way == 16
        assert validation_columns(fake(any_way=False), columns, 16).keys() == columns.keys() - {"20-way 1-shot"}


class TestTasks:
    def test_ours_are_tested_on_the_tasks_of_evaluate(self):
        fitted = learner(FEATURES["train"])
        for spec in (TaskSpec(way=2, queries=5), TaskSpec(way=3, shot=2, queries=5, imbalance=2.0)):
            scores = fitted.evaluate(FEATURES["test"], spec, split="test", tasks=60, earlier=False)[3]
            outcome = run_learner(fitted, FEATURES["test"], spec, 60)
            assert float(outcome.accuracy.mean()) == pytest.approx(scores.accuracy, abs=1e-9)

    def test_steps_are_chosen_on_validation_tasks_of_the_column(self):
        fitted, spec = learner(FEATURES["train"]), TaskSpec(way=3, queries=5, imbalance=2.0)
        sampler = EpisodeSampler(map_items(fitted.space, FEATURES["val"]), spec)
        how = {"tasks": 60, "seed": mix_seed(few_shot_peers.VALIDATION_SEED)}
        right = []
        for k in range(7):
            found = predictions(fitted.model, fitted.guide.after(k), sampler, **how)
            right.append(sum(int((p.probabilities().argmax(-1) == episode.query_y).sum()) for episode, p in found))
        assert len(set(right)) > 1
        assert right[best_steps(fitted, FEATURES["val"], spec, 60)] == max(right)

    def test_steps_that_are_right_most_often_are_chosen_the_fewest_of_these(self, monkeypatch):
        def counted(learner, guides, *rest):
            assert [guide.steps for guide in guides] == list(range(7))
            assert rest[-1] == few_shot_peers.VALIDATION_SEED
            return [
                few_shot_peers.Outcome(torch.tensor(right), 5, 1.0)
                for right in ([3, 0], [1, 1], [0, 2], [2, 2], [4, 1], [1, 4], [4, 0])
            ]

        monkeypatch.setattr(few_shot_peers, "run_readings", counted)
        assert best_steps(learner(FEATURES["train"]), FEATURES["val"], TaskSpec(), 2) == 4

    def test_peers_are_tested_on_the_same_tasks_as_ours(self):
        drawn = []

        def watched(setting, episode):
            drawn.append(episode.query_y)
            return episode.query_y

        sampler = EpisodeSampler(FEATURES["test"], COLUMNS["b"])
        outcome = run_rule(watched, Preparation(FEATURES["train"].items), {}, sampler, 60, mix_seed(TEST_SEED))
        first = sampler.sample(50, seed=mix_seed(mix_seed(TEST_SEED), 0))
        assert torch.equal(drawn[0], first.query_y)
        assert outcome.accuracy.tolist() == [1.0] * 60

    def test_batches_that_are_another_rule_are_refused(self):
        rule = fake(quick=answers)
        good, whole = (examine(r, FEATURES, COLUMNS, {}, **SMALL | {"own_tasks": 2}) for r in (rule, fake()))
        assert (good["own tasks"], whole["own tasks"]) == (2, 6)
        assert [row.accuracy["b"].tolist() for row in peer_rows("fake", good, COLUMNS)] == [
            row.accuracy["b"].tolist() for row in peer_rows("fake", whole, COLUMNS)
        ]
        wrong = replace(rule, values={**rule.values, "split": ("all",)}, quick=lambda setting, episode: episode.query_y)
        with pytest.raises(RuntimeError, match="fake in batches differs from its authors' code in"):
            examine(wrong, FEATURES, COLUMNS, {}, **SMALL | {"own_tasks": 2})


class TestTable:
    def test_differences_are_paired(self):
        ours = Row("ours", ONE, {"a": torch.tensor([0.5, 0.7, 0.9, 0.7])})
        peer = Row("peer", OWN, {"a": torch.tensor([0.4, 0.6, 0.8, 0.6]), "b": torch.ones(4)})
        less = ours.less(peer)
        assert (less.name, less.setting, less.accuracy.keys()) == ("ours − peer", OWN, {"a"})
        assert less.cell("a", "+") == "+10.00 ± 0.00", "although each varies by 16 %"
        assert less.cell("b") == "-"
        assert ours.cell("a") == f"70.00 ± {1.96 * 16.3299 / 2:.2f}"

    def test_a_lead_within_the_interval_is_none(self):
        ours = Row("ours", ONE, {"a": torch.full((4,), 0.5), "b": torch.tensor([0.5, 0.5, 0.5, 0.6])})
        peer = Row("peer", ONE, {"a": torch.full((4,), 0.4), "b": torch.full((4,), 0.5)})
        assert (
            verdict(ours, [peer], ["a", "b"]) == "ours: ahead of every peer, beyond the interval, in a; not in b (not of peer)"
        )

    def test_what_is_chosen_for_a_column_stands_beside_what_is_chosen_for_a_column(self):
        peers = [Row("peer", setting, {"a": torch.full((4,), 0.6 if setting == ONE else 0.4)}) for setting in (ONE, OWN)]
        one, own = (Row("ours", setting, {"a": torch.full((4,), 0.5)}) for setting in (ONE, OWN))
        assert verdict(one, peers, ["a"]).endswith("in no column; not in a (not of peer)")
        assert verdict(own, peers, ["a"]).endswith("in a")
        assert [len(table(peers, [ours], ["a"]).splitlines()) for ours in (one, own)] == [1 + 3 + 2, 1 + 3 + 1]

    def test_rows_are_what_was_kept(self):
        kept = examine(fake(), FEATURES, COLUMNS, {}, **SMALL)
        assert [row.setting for row in peer_rows("fake", kept, COLUMNS)] == ["one, per column"]
        kept[ONE], kept[OWN] = {"classes": 3}, {"a": {"classes": 1}}
        kept["tests"] = {
            key_of(setting): {"a": {"right": right, "speed": 1.0}}
            for setting, right in ((kept[ONE], "75 0"), (kept[OWN]["a"], "30 15"))
        }
        one, own = peer_rows("fake", kept, {"a": TaskSpec()})
        assert (one.accuracy["a"].tolist(), own.accuracy["a"].tolist()) == ([1.0, 0.0], [0.4, 0.2])
        assert own.speed is None, "the time is that of the one setting"


class TestCommand:
    @pytest.fixture
    def words(self, tmp_path, monkeypatch):
        rules = [fake(), replace(fake(), name="other")]
        monkeypatch.setattr(few_shot_peers, "NAMES", ("fake", "other"))
        monkeypatch.setattr(few_shot_peers, "easyfsl_rules", lambda checkout: rules)
        save_features(tmp_path / "features.safetensors", FEATURES)
        words = f"--features {tmp_path}/features.safetensors --out {tmp_path}/out.json --tasks 6 --validation-tasks 4"
        return words.split()

    def test_one_table_by_parts_that_compares_ours_without_the_peers(self, words, tmp_path, capsys):
        main([*words, "--easyfsl", "here", "--methods", "fake"])
        main([*words, "--easyfsl", "here"])
        shown = main([*words, "--run", run_folder(tmp_path / "mine")]).splitlines()
        own = ["ours, mine", "ours, mine, K per column"]
        names = ["fake", "other", *own, *(f"{name} − {peer}" for name in own for peer in ("fake", "other"))]
        assert [line.split("  ")[0] for line in shown[1:]] == names
        assert "1-shot imbalanced" in shown[0]
        kept = json.loads((tmp_path / "out.json").read_text())
        assert kept["ours"]["ours, mine"]["differences"][0]["columns"].keys() == columns_of().keys()
        printed = capsys.readouterr().out
        assert "ours, mine: ahead of every peer" in printed
        assert re.search(r"^ours, mine: K = 3; per column \d in 1-shot, \d in 5-shot, \d in 1-shot imb", printed, re.MULTILINE)

    def test_peers_may_take_the_features_that_ours_has_mapped(self, words, tmp_path, monkeypatch):
        seen, folder = [], run_folder(tmp_path / "mine")
        space = FittedLearner.load(folder).space

        def watched(setting, episode):
            seen.append(episode.query_x.flatten(0, 1))
            return episode.query_y

        monkeypatch.setattr(few_shot_peers, "easyfsl_rules", lambda checkout: [Rule("fake", {"scale": (1.0,)}, watched)])
        main([*words, "--easyfsl", "here", "--methods", "fake", "--mapped", folder])
        mapped = F.normalize(map_items(space, FEATURES["test"]).items, dim=-1)
        assert all(torch.cdist(F.normalize(items, dim=-1), mapped).amin(-1).max() < 1e-3 for items in seen[-4:])
        with pytest.raises(UserError, match="has results of other"):
            main([*words, "--easyfsl", "here", "--methods", "fake"])

    def test_bad_input_is_one_line(self, words, tmp_path):
        with pytest.raises(UserError, match="fake needs a checkout: give `easyfsl=FOLDER`"):
            main(words)
        with pytest.raises(UserError, match="`methods=oter` is none: choose fake, other; did you mean other"):
            main([*words, "--methods", "oter"])
        main([*words, "--easyfsl", "here"])
        with pytest.raises(UserError, match="has results of other tasks: choose another file"):
            main([*words, "--tasks", "7"])
        folder = run_folder(tmp_path / "mine")
        save_features(tmp_path / "features.safetensors", marked_splits(classes=5, images=80))
        with pytest.raises(UserError, match="has other test images than the feature file"):
            main([*words, "--out", str(tmp_path / "new.json"), "--easyfsl", "here", "--run", folder])


class TestOurs:
    def test_one_row_is_after_all_steps_and_the_other_after_those_of_its_column(self, tmp_path, monkeypatch):
        folder, few = run_folder(tmp_path / "mine"), {"a": 0, "b": 2}
        monkeypatch.setattr(few_shot_peers, "best_steps", lambda learner, part, spec, n: few["b" if spec.shot == 5 else "a"])
        (one, own), said = learner_rows(folder, FEATURES, COLUMNS, 6, 4)
        assert [one.setting, own.setting] == [ONE, OWN]
        fitted = FittedLearner.load(folder)
        for column, spec in COLUMNS.items():
            by_steps = [
                run_readings(fitted, [guide], FEATURES["test"], spec, 6, TEST_SEED)[0].accuracy
                for guide in readings(fitted.guide).values()
            ]
            assert torch.equal(one.accuracy[column], by_steps[3])
            assert torch.equal(own.accuracy[column], by_steps[few[column]])
            assert not torch.equal(by_steps[3], by_steps[few[column]])
        assert said == "ours, mine: K = 3; per column 0 in a, 2 in b"


class TestRules:
    """Of other authors, in batches, and their own code where the variable EASYFSL names a checkout."""

    EPISODE = EpisodeSampler(gaussian_bank(images=80, noise=2.0), TaskSpec(way=3, shot=2)).sample(4, seed=0)

    def test_preparation(self):
        base = torch.rand(20, 10)
        prepare = Preparation(base)
        episode = self.EPISODE._replace(support_x=torch.rand(4, 6, 10), query_x=torch.rand(4, 45, 10))
        assert prepare({}, episode) is episode
        unit = F.normalize((episode.query_x + 1e-6).sqrt(), dim=-1)
        assert torch.allclose(prepare({"root": True, "centre": "none"}, episode).query_x, unit)
        mean = F.normalize((base + 1e-6).sqrt(), dim=-1).mean(0)
        assert torch.allclose(prepare({"root": True, "centre": "base"}, episode).query_x, F.normalize(unit - mean, dim=-1))
        alone = prepare({"root": False, "centre": "task"}, episode.tasks(slice(2, 3)))
        assert torch.allclose(prepare({"root": False, "centre": "task"}, episode).query_x[2], alone.query_x[0])

    def test_transport_shares_queries_equally(self):
        plan = transport(self.EPISODE.query_x, self.EPISODE.support_x[:, ::2], 10.0)
        assert torch.allclose(plan.sum(-2), torch.tensor(15.0), rtol=1e-3)
        assert torch.allclose(plan.sum(-1), torch.tensor(1.0))

    @pytest.mark.parametrize("classify", [tim, pt_map])
    def test_tasks_in_a_batch_do_not_mix(self, classify):
        setting = next(rule for rule in rules_without_checkout() if rule.quick is classify).published() | {"steps": 5}
        whole = classify(setting, self.EPISODE)
        alone = torch.cat([classify(setting, self.EPISODE.tasks(slice(t, t + 1))) for t in range(4)])
        assert torch.equal(whole, alone)
        assert float((whole == self.EPISODE.query_y).float().mean()) > 0.5, "and it is no guess"

    @pytest.mark.skipif("EASYFSL" not in os.environ, reason="EASYFSL names no checkout of easyfsl")
    def test_their_own_code_agrees_with_formulas_written_by_hand(self):
        by_name = {rule.name: rule for rule in easyfsl_rules(os.environ["EASYFSL"])}
        episode = Preparation(self.EPISODE.query_x.flatten(0, 1))({"root": False, "centre": "none"}, self.EPISODE)
        classes = [episode.support_x[:, 2 * c : 2 * c + 2] for c in range(3)]
        means = torch.stack([some.mean(1) for some in classes], dim=1)
        for distance, scores in {
            "PrototypicalNetworks": -torch.cdist(episode.query_x, means),
            "SimpleShot": episode.query_x @ F.normalize(means, dim=-1).mT,
        }.items():
            setting = {**by_name["nearest mean"].published(), "distance": distance}
            assert torch.equal(by_name["nearest mean"].classify(setting, episode), scores.argmax(-1))
        setting = by_name["LaplacianShot"].published()
        new = rectified(episode, means, setting["sharpness"])
        assert torch.equal(
            by_name["BD-CSPN"].classify(setting, episode), (episode.query_x @ F.normalize(new, dim=-1).mT).argmax(-1)
        )
        smooth = smoothed(episode.query_x, new, setting["knn"] - 1, setting["lambda"])
        assert torch.equal(by_name["LaplacianShot"].classify(setting, episode), smooth)
        for name in ("TIM", "PT-MAP"):
            setting = by_name[name].published()
            same = by_name[name].classify(setting, episode) == by_name[name].quick(setting, episode)
            assert float(same.float().mean()) > 0.99


def rectified(episode, means, sharpness):
    """The new means of BD-CSPN (Liu et al. 2020, equations 5 to 8): queries are shifted, take the class of the nearest mean,
    and count in its new one by exp(ε cos)."""
    shift = episode.support_x.mean(1, keepdim=True) - episode.query_x.mean(1, keepdim=True)
    items = torch.cat([episode.support_x, episode.query_x + shift], dim=1)
    cosine = F.normalize(items, dim=-1) @ F.normalize(means, dim=-1).mT
    supported = episode.support_y.shape[1]
    labels = torch.cat([episode.support_y, cosine[:, supported:].argmax(-1)], dim=1)
    weights = torch.where(F.one_hot(labels, means.shape[1]) > 0, (sharpness * cosine).exp(), torch.zeros(()))
    return (weights / weights.sum(1, keepdim=True)).mT @ items


def smoothed(queries, means, neighbours, strength):
    """LaplacianShot (Ziko et al. 2020, Algorithm 1): y ← softmax(−d² + λ W y), W the nearest other queries of each."""
    apart = torch.cdist(queries, queries) + 1e6 * torch.eye(queries.shape[1])
    graph = torch.zeros_like(apart).scatter_(-1, apart.topk(neighbours, largest=False).indices, 1.0)
    distances = torch.cdist(queries, means).square()
    assigned = (-distances).softmax(-1)
    for _ in range(20):
        assigned = (-distances + strength * graph @ assigned).softmax(-1)
    return assigned.argmax(-1)


def rules_without_checkout():
    """The rules as they are, of classes that are not there."""
    return few_shot_rules.rules_of(None)
