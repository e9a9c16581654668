"""A site keeps its say: what its policy declines is named on both ends, and the run goes on without it."""

import json
import logging

import pytest
import torch
from flwr.app import ConfigRecord, Context, RecordDict

from fedddpm_app.algorithms import REGISTRY
from fedddpm_app.apps.client import set_up
from fedddpm_app.auxiliary.gate import Gate
from fedddpm_app.client.policy import check_action, stricter
from fedddpm_app.client.site_failures import public_text
from fedddpm_app.config import ConfigError, load_config
from fedddpm_app.config.site import SitePolicy, read_policy
from fedddpm_app.federation.errors import RoundFailedError
from fedddpm_app.federation.messages.records import CONFIG, METRICS, SERVER_ROUND
from fedddpm_app.inprocess.grid import InProcessGrid
from fedddpm_app.training.declined import DeclinedError


@pytest.fixture
def at_client_1(monkeypatch):
    """Give the node of client 1, or all of ``clients``, further settings."""

    def set_up(clients=(1,), **settings):
        original = InProcessGrid.__init__

        def create(self, *args, **kwargs):
            original(self, *args, **kwargs)
            for client in clients:
                given = {key.replace("_", "-"): value for key, value in settings.items()}
                self.contexts[1000 + client].node_config |= given

        monkeypatch.setattr(InProcessGrid, "__init__", create)

    return set_up


def test_a_site_takes_part_only_in_the_algorithms_that_it_allows(run_app, at_client_1, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("fedddpm"), "propagate", True)
    at_client_1(site_algorithms="fedprox, scaffold")
    run = run_app(algorithm="fedavg")
    reason = 'this site does not take part: algorithm = "fedavg", and site-algorithms = "fedprox, scaffold"'
    assert [row.get("train/left_out") for row in run.rounds()] == [{"1": reason}, None]
    assert [row.get("declined") for row in run.rounds()] == [None, [1]]
    assert [sorted(row["train/client_loss"]) for row in run.rounds()] == [["0", "2", "3"]] * 2
    assert f"client 1 declines: {reason}" in caplog.text
    assert f"client 1 is left out: {reason}" in caplog.text
    assert "train/left_out" not in run_app(algorithm="fedprox").rounds()[0]


@pytest.mark.slow
def test_a_site_that_shares_no_models_still_shares_images_and_trains(run_app, at_client_1):
    at_client_1(site_shares_models=False)
    models = run_app(num_rounds=1)
    (row,) = (row for row in models.stats if row["phase"] == "pretrain")
    assert row["pretrain/clients"] == [0, 2, 3]
    assert row["pretrain/left_out"]["1"].startswith('this site shares no model of its own, which "pretrain" asks for')
    assert sorted(models.rounds()[0]["train/client_loss"]) == ["0", "1", "2", "3"]
    images = run_app(num_rounds=1, auxiliary_sharing="images")
    (row,) = (row for row in images.stats if row["phase"] == "pretrain")
    assert row["pretrain/clients"] == [0, 1, 2, 3]


def test_a_site_trains_up_to_its_last_round(run_app, at_client_1):
    """It says so once, and is not asked again; a round that samples clients takes others."""
    at_client_1(site_max_rounds=1)
    first, second, third = run_app(algorithm="fedavg", num_rounds=3, clients_per_round=3, seed=1).rounds()
    assert "train/left_out" not in first
    assert second["train/left_out"] == {"1": "this site does not train in round 2: site-max-rounds = 1"}
    assert "train/left_out" not in third
    assert third["declined"] == [1]
    assert third["clients"] == [0, 2, 3]


def test_clients_that_have_declined_count_in_the_share_that_must_answer(run_app, at_client_1):
    """Three of four decline in round 2: the model of the last one alone is not the round's."""
    at_client_1(range(3), site_max_rounds=1)
    with pytest.raises(
        RoundFailedError, match="1 of the 1 clients returned a usable reply, fewer than min-replies = 4"
    ):
        run_app(algorithm="fedavg", num_rounds=2, min_replies=0.9, max_round_retries=1)


def test_a_run_whose_clients_have_all_declined_ends_with_the_reason(run_app, at_client_1):
    at_client_1(range(4), site_max_rounds=1)
    with pytest.raises(RoundFailedError, match=r"round 2: all connected clients have declined; client 0: this site"):
        run_app(algorithm="fedavg", num_rounds=2, max_round_retries=1)


@pytest.mark.slow
def test_a_site_that_wants_privacy_trains_only_with_a_budget_that_is_small_enough(run_app, at_client_1):
    at_client_1(site_max_epsilon=4.0)
    reason = "this site trains with privacy only: {}-dp-epsilon = {}, and site-max-epsilon = 4"
    run = run_app(num_rounds=1)
    (row,) = (row for row in run.stats if row["phase"] == "pretrain")
    assert row["pretrain/left_out"] == {"1": reason.format("pretrain", 0)}
    assert run.rounds()[0]["train/left_out"] == {"1": reason.format("train", 0)}
    weak = run_app(algorithm="fedavg", num_rounds=1, train_dp_epsilon=4.0, train_dp_delta=1e-3).rounds()[0]
    assert weak["train/left_out"]["1"].endswith("train-dp-delta = 0.001, and site-max-delta = 1e-05")
    too_large = run_app(algorithm="fedavg", num_rounds=1, train_dp_epsilon=5.0).rounds()[0]
    assert too_large["train/left_out"] == {"1": reason.format("train", 5)}
    assert "train/left_out" not in run_app(algorithm="fedavg", num_rounds=1, train_dp_epsilon=4.0).rounds()[0]


@pytest.mark.slow
def test_a_site_that_wants_privacy_trains_with_no_noise_that_the_server_knows(run_app, at_client_1):
    """The server knows the seed, and could subtract the noise that derives from it."""
    at_client_1(site_max_epsilon=4.0)
    (row,) = run_app(algorithm="fedavg", num_rounds=1, train_dp_epsilon=4.0, dp_secret_noise=False).rounds()
    assert row["train/left_out"]["1"].startswith("this site trains with secret noise only: dp-secret-noise = false")
    assert sorted(row["train/left_out"]) == ["1"]


def test_a_site_that_wants_privacy_reports_no_loss_on_its_images(run_app, at_client_1, monkeypatch):
    at_client_1(site_max_epsilon=4.0)
    original, losses = InProcessGrid._answer, []

    def answer(self, message):
        reply = original(self, message)
        if message.metadata.message_type == "evaluate" and reply.has_content():
            losses.append(message.metadata.dst_node_id)
        return reply

    monkeypatch.setattr(InProcessGrid, "_answer", answer)
    (row,) = run_app(algorithm="fedavg", num_rounds=1).rounds()
    assert sorted(losses) == [1000, 1002, 1003]
    assert row["client-eval/left_out"]["1"].startswith("this site reports no loss on its images")


@pytest.mark.parametrize(
    ("algorithm", "name"), [("pdfed", "score"), ("fedphd", "report_labels"), ("fedddpm-late", "vote")]
)
def test_a_site_that_wants_privacy_answers_no_question_about_its_images_without_noise(config, algorithm, name):
    action = REGISTRY[algorithm].client_actions[name]
    check_action(config, SitePolicy(), name, action, 1)
    with pytest.raises(
        DeclinedError, match=f'the answer to "{name}" depends on its images without noise: site-max-epsilon = 4'
    ):
        check_action(config, SitePolicy(max_epsilon=4.0), name, action, 1)


@pytest.mark.parametrize("kind", ["train", "train.default"])
def test_a_server_that_names_an_earlier_round_gets_no_more_trainings(run_app, at_client_1, monkeypatch, kind):
    """Client 1 is asked for round 1 three times; the policy allows one round. Flower knows the request by two names."""
    at_client_1(site_max_rounds=1)
    original, answered = InProcessGrid._answer, []

    def answer(self, message):
        number = message.content[CONFIG][SERVER_ROUND] if message.metadata.message_type == "train" else 0
        if not number or message.metadata.dst_node_id != 1001:
            return original(self, message)
        asked = ConfigRecord({**message.content[CONFIG], SERVER_ROUND: 1})  # messages share their records
        message.content = RecordDict({**message.content, CONFIG: asked})
        message.metadata.__dict__["_message_type"] = kind if number > 1 else "train"
        reply = original(self, message)
        if not reply.has_error():
            answered.append(number)
            reply.content[METRICS][SERVER_ROUND] = number
        return reply

    monkeypatch.setattr(InProcessGrid, "_answer", answer)
    run_app(algorithm="fedavg", num_rounds=3)
    assert answered == [1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        ({"site_max_rounds": 1}, ": site-max-rounds = 1"),
        pytest.param(
            {"site_min_images": 5},
            'this site shares nothing that was not checked, as "train_and_submit" does not: site-min',
            marks=pytest.mark.slow,
        ),
        ({"site_shares_models": False}, 'shares no model of its own, which "train_and_submit" asks for'),
        pytest.param({"site_max_memorized_share": 0.5}, "shares nothing that was not checked", marks=pytest.mark.slow),
    ],
)
def test_the_policy_holds_for_the_trainings_of_peers_too(run_app, at_client_1, policy, reason):
    at_client_1(**policy)
    run = run_app(algorithm="pdfed", pdfed_samples=20, pdfed_speed_spread=1.0, num_rounds=3)
    ledger = [json.loads(line) for line in (run.path / "ledger.jsonl").read_text().splitlines()]
    left = [entry["reason"] for entry in ledger if entry["kind"] == "left" and entry["peer"] == 1]
    assert left
    assert all(reason in text for text in left)
    submitted = sum(entry["kind"] == "submission" and entry["peer"] == 1 for entry in ledger)
    assert submitted == (1 if "site_max_rounds" in policy else 0)


def test_a_sites_own_check_is_stricter_than_the_runs(run_app, at_client_1):
    at_client_1(site_min_images=10_000)
    run = run_app(num_rounds=1, memorization_check="never")
    (row,) = (row for row in run.stats if row["phase"] == "pretrain")
    assert row["pretrain/clients"] == [0, 2, 3]
    assert row["pretrain/left_out"]["1"].endswith("and min-images-to-share = 10000")
    assert "pretrain/memorized_share" not in row, "the others do not check"


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "declines"), [(0.5, False), (0.0, True)])
@pytest.mark.parametrize("sharing", ["models", "images"])
def test_a_site_checks_a_private_model_too_and_says_no_number(
    run_app, at_client_1, monkeypatch, sharing, limit, declines
):
    """The run may not ask for that; of the result, the server learns only whether the site shares something."""
    monkeypatch.setattr(Gate, "copies", lambda _, images: torch.arange(len(images)) == 0)
    at_client_1(site_max_memorized_share=limit)
    run = run_app(num_rounds=1, pretrain_dp_epsilon=3.0, auxiliary_sharing=sharing)
    (row,) = (row for row in run.stats if row["phase"] == "pretrain")
    assert row["pretrain/clients"] == ([0, 2, 3] if declines else [0, 1, 2, 3])
    reason = "it shares nothing: too many images of its model are near copies for this site's policy"
    assert row.get("pretrain/left_out") == ({"1": reason} if declines else None)
    assert "pretrain/memorized_share" not in row
    built = next(row for row in run.stats if row["phase"] == "auxiliary")
    assert not any(built.get("aux/replaced", {}).values())
    assert "train/left_out" not in run.rounds()[0]


def test_a_site_that_wants_masks_trains_only_with_secure_aggregation(run_app, at_client_1):
    at_client_1(site_secure_aggregation=True)
    (row,) = run_app(algorithm="fedavg", num_rounds=1).rounds()
    assert row["train/left_out"]["1"].startswith("this site trains only where its updates are masked")
    (row,) = run_app(algorithm="fedavg", num_rounds=1, secure_aggregation=True, max_update_norm="").rounds()
    assert "train/left_out" not in row


@pytest.mark.parametrize(
    ("run", "site", "effective"),
    [
        ({}, {}, ("auto", 0.1, 1)),
        ({}, {"max_memorized_share": 0.5}, ("always", 0.1, 1)),
        ({}, {"max_memorized_share": 0.0}, ("always", 0.0, 1)),
        ({"memorization-check": "never"}, {"min_images": 9}, ("never", 0.1, 9)),
        ({"min-images-to-share": 30}, {"min_images": 9}, ("auto", 0.1, 30)),
    ],
)
def test_the_stricter_limit_counts(run_config, run, site, effective):
    sharing = stricter(load_config(run_config | run), SitePolicy(**site)).sharing
    assert (sharing.memorization_check, sharing.max_memorized_share, sharing.min_images_to_share) == effective


def test_a_policy_may_be_a_file_and_single_keys_replace_its_values(tmp_path):
    file = tmp_path / "site.toml"
    file.write_text('site-algorithms = "fedavg,fedddpm"\nsite-max-rounds = 7\nsite-shares-models = false\n')
    policy = read_policy({"partition-id": 0, "site-policy": str(file), "site-max-rounds": 5})
    assert policy == SitePolicy(algorithms="fedavg,fedddpm", max_rounds=5, shares_models=False)
    assert policy.allowed == ("fedavg", "fedddpm")
    assert read_policy({"partition-id": 0, "data-path": "/x"}) == SitePolicy()
    assert SitePolicy().allowed == ()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"site-max-round": 3}, "site-max-round = 3: a site has no such key; .*site-max-rounds"),
        ({"site-max-rounds": -1}, "site-max-rounds = -1 cannot be used"),
        ({"site-shares-models": "no"}, "site-shares-models = .* should be true or false"),
        ({"site-policy": "/nowhere.toml"}, "site-policy /nowhere.toml: the file cannot be read"),
        ({"site-algorithms": "a b"}, "site-algorithms = .* names with commas between"),
    ],
)
def test_a_policy_that_cannot_be_read_allows_nothing(settings, says):
    with pytest.raises(ConfigError, match=f"this site's policy cannot be used, so it takes no part: .*{says}"):
        read_policy(settings)


def test_the_run_goes_on_without_a_site_whose_policy_cannot_be_read(run_app, at_client_1):
    at_client_1(site_max_round=3)
    (row,) = run_app(algorithm="fedavg", num_rounds=1).rounds()
    assert "site-max-round = 3: a site has no such key" in row["train/left_out"]["1"]
    assert sorted(row["train/client_loss"]) == ["0", "2", "3"]


@pytest.mark.parametrize(
    ("node", "places"),
    [
        ({}, ["/server/state", "/server/cache", "/server/file"]),  # a simulated client
        ({"data-path": "/data"}, ["", "", ""]),
        ({"site-max-rounds": 5, "state-dir": "/own/state"}, ["/own/state", "", ""]),
        ({"data-path": "/data", "cache-dir": "/own/cache"}, ["", "/own/cache", ""]),
        ({"data-path": "/data", "inception-weights": "/own/file"}, ["", "", "/own/file"]),
    ],
)
def test_the_server_chooses_no_file_or_folder_of_a_site(run_config, node, places):
    """Else it could write beside the site's files, or hide the account of the privacy that was spent."""
    run_config |= {"state-dir": "/server/state", "cache-dir": "/server/cache", "inception-weights": "/server/file"}
    config = set_up(Context(1, 2, {"partition-id": 0} | node, RecordDict(), run_config)).config
    assert [config.run.state_dir, config.data.cache_dir, config.evaluation.inception_weights] == places


@pytest.mark.parametrize(("algorithm", "key"), [("fedddpm", "memorization-extractor"), ("pdfed", "pdfed-embedder")])
def test_a_server_finds_out_of_no_file_whether_a_site_has_it(run_config, tmp_path, algorithm, key):
    """A network of the run, whose weights are a file of each client: at a site, it is a file that the site names."""
    (tmp_path / "there").write_bytes(b"no weights")
    run_config |= {"algorithm": algorithm, key: "inception-v3", "memorization-check": "always"}
    answers = set()
    for path in (tmp_path, tmp_path / "there", tmp_path / "nowhere"):
        asked = run_config | {"inception-weights": str(path)}
        with pytest.raises(ConfigError, match=f"{key} = .*needs inception-weights .* of --node-config") as refused:
            set_up(Context(1, 2, {"partition-id": 0, "data-path": "/data"}, RecordDict(), asked))
        answers.add(public_text(refused.value))
    assert len(answers) == 1
