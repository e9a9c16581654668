"""The in-process entry: what it takes, what it gives, and what it leaves alone."""

import logging
import traceback
import types
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from fedddpm_app import FederatedStrategy
from fedddpm_app.algorithms import REGISTRY
from fedddpm_app.config import ConfigError
from fedddpm_app.federation.errors import RoundFailedError
from fedddpm_app.inprocess.simulate import simulate
from fedddpm_app.inprocess.task import Pooled, as_training_data
from fedddpm_app.training.actions import ActionAnswer, ClientAction
from fedddpm_app.training.hooks import TrainingHook
from tests.algorithms.problems import CLIENTS, STEPS, Point, quadratic, run, same


def regression(model, batch):
    inputs, targets = batch
    return (model(inputs) - targets).square().mean()


def make_regression(count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, generator=generator), torch.randn(count, 1, generator=generator)


class Rows(Dataset):
    def __init__(self, columns):
        self.columns = columns

    def __len__(self):
        return len(self.columns[0])

    def __getitem__(self, index):
        return tuple(column[index] for column in self.columns)


FORMS = {
    "tuple of tensors": lambda columns: columns,
    "tuple of arrays": lambda columns: tuple(column.numpy() for column in columns),
    "TensorDataset": lambda columns: TensorDataset(*columns),
    "Dataset": Rows,
    "list of examples": lambda columns: [Rows(columns)[i] for i in range(len(columns[0]))],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_data_set_trains_the_same(form):
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    clients = [make_regression(5, 1), make_regression(3, 2)]
    expected, _ = simulate("fedavg", model, regression, clients, 2, 3, 0.1, batch_size=2)
    found, _ = simulate("fedavg", model, regression, [FORMS[form](c) for c in clients], 2, 3, 0.1, batch_size=2)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_loss_that_raises_is_one_sentence_with_the_exception_as_its_cause(capfd):
    def loss(model, batch):
        raise KeyError("missing")

    data = [make_regression(4, seed) for seed in range(3)]
    with pytest.raises(RoundFailedError, match=r"none of the 3 clients .*; client 0: KeyError: 'missing'") as caught:
        simulate("fedavg", nn.Linear(2, 1), loss, data, 1, 1, 0.1)
    assert isinstance(caught.value.__cause__, KeyError)
    names = [frame.name for frame in traceback.extract_tb(caught.value.__cause__.__traceback__)]
    assert names[-1] == "loss"  # the user's own
    shown = "".join(capfd.readouterr())
    assert "Traceback" not in shown
    assert "\x1b" not in shown


def test_batches_keep_the_form_of_their_data_set():
    def loss(model, batch):
        assert set(batch) == {"x", "y"}
        assert batch["y"].dtype == torch.int64
        assert batch["x"].dtype == torch.float64
        return model(batch["x"]).square().mean()

    data = {"x": torch.randn(4, 2), "y": torch.arange(4)}
    simulate("fedavg", nn.Linear(2, 1), loss, [data], 1, 1, 0.1)
    seen = []
    simulate(
        "fedavg", nn.Linear(2, 1), lambda m, b: seen.append(b.shape) or m(b).mean(), [torch.randn(5, 2)], 1, 1, 0.1
    )
    assert seen == [(5, 2)]


@pytest.mark.slow
def test_a_pair_of_numbers_is_one_example():
    class X(nn.Module):
        def __init__(self):
            super().__init__()
            self.x = nn.Parameter(torch.tensor(0.0))

    def loss(model, batch):
        a, b = batch
        return (a / 2 * (model.x - b) ** 2).sum()

    weights, _ = simulate("scaffold", X(), loss, [(1.0, -1.0), (4.0, 3.0)], 100, 10, 0.05)
    assert abs(float(weights["x"]) - 2.2) < 1e-6


def test_weights_and_history_are_what_is_promised():
    weights, history = simulate("fedavg", Point(), quadratic, CLIENTS, rounds=3, local_steps=2, lr=0.1)
    assert list(weights) == ["x"]
    assert weights["x"].dtype == torch.float64
    assert [row["round"] for row in history] == [1, 2, 3]
    assert history[0]["train/loss"] > history[2]["train/loss"]
    first = float(quadratic(Point(), CLIENTS[0]).detach())
    one_step = simulate("fedavg", Point(), quadratic, CLIENTS, 1, 1, 0.1)[1]
    assert one_step[0]["train/client_loss"]["0"] == pytest.approx(first, rel=1e-12)


def test_the_callers_model_and_data_are_left_alone():
    model, data = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1)), make_regression()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    copies = [column.clone() for column in data]
    for name in ("fedavg", "scaffold", "feddyn", "moon", "local-only"):
        simulate(name, model, regression, [data, data], 2, 2, 0.1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(column, copy) for column, copy in zip(data, copies, strict=True))
    assert model[0].weight.dtype == torch.float32


@pytest.mark.parametrize("name", [name for name in REGISTRY if name not in ("aux-only", "kd-only", "pdfed")])
def test_models_with_buffers_frozen_and_tied_parameters(name):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Linear(2, 2), nn.BatchNorm1d(2)
            self.second = nn.Linear(2, 2)
            self.second.weight = self.first.weight
            self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

        def forward(self, x):
            return self.second(self.norm(self.first(x))) * self.frozen

        def parts(self):  # of feddiffuse, whose decoder travels
            return dict.fromkeys(self.state_dict(), "decoder") | {"frozen": "encoder", "second.bias": "bottleneck"}

    torch.manual_seed(1)
    corrected = {"correction_steps": 1, "auxiliary_data": make_regression(4, 9)}
    special = {
        "fedddpm": corrected,
        "fedddpm-plus": corrected | {"threshold": 1e9},
        "fedddpm-kd": {"correction_steps": 0},
        "fedddpm-late": {"correction_steps": 0, "pretrain_steps": 1},
        "mixture": {"pretrain_steps": 6},
        "fedphd": {"cloud_every": 1, "class_counts": [[6, 0], [0, 6], [3, 3]]},
    }
    more = special.get(name, {})
    weights, _ = simulate(name, Tied(), regression, [make_regression(6, k) for k in range(3)], 3, 2, 0.05, **more)
    assert torch.equal(weights["frozen"], torch.ones(2, dtype=torch.float64))
    assert torch.equal(weights["first.weight"], weights["second.weight"])
    steps = {"centralized": 18, "fedddpm": 9, "fedddpm-plus": 7, "fedddpm-late": 7}  # with corrections or fine-tuning
    assert int(weights["norm.num_batches_tracked"]) == steps.get(name, 6)
    assert weights["norm.num_batches_tracked"].dtype == torch.int64
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_a_loss_may_draw_random_numbers_from_its_generator():
    def noisy(model, batch, generator):
        return (model(batch[0]) + torch.randn(3, generator=generator, dtype=torch.float64)).square().mean()

    results = [simulate("fedavg", Point(), noisy, CLIENTS, 2, 3, 0.1, seed=seed)[0]["x"] for seed in (0, 0, 1)]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize(
    ("algorithm", "settings", "streams"),
    [
        ("fedavg", {}, 3 * 3),
        ("centralized", {}, 3),
        ("fedddpm", {"auxiliary_data": CLIENTS[0], "correction_steps": 1}, 3 * 3 + 3),
        ("scaffold", {"option": "I"}, 2 * 3 * 3),
    ],
)
def test_every_training_has_random_numbers_of_its_own(algorithm, settings, streams):
    """No client, round or phase draws what another one has drawn."""
    seeds = set()

    def loss(model, batch, generator):
        seeds.add(generator.initial_seed())
        return quadratic(model, batch)

    simulate(algorithm, Point(), loss, CLIENTS, 3, 2, 0.1, **settings)
    assert len(seeds) == streams


def test_a_third_argument_with_a_default_is_left_alone():
    def loss(model, batch, factor=1.0):
        assert factor == 1.0
        return quadratic(model, batch)

    simulate("fedavg", Point(), loss, CLIENTS, 1, 1, 0.1)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_local_optimisers_are_torchs(optimizer):
    model = Point()
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer]
    own = kind(model.parameters(), 0.1, weight_decay=0.0)
    for _ in range(5):
        own.zero_grad()
        quadratic(model, CLIENTS[0]).backward()
        own.step()
    found = run("fedavg", CLIENTS[:1], rounds=1, local_steps=5, lr=0.1, optimizer=optimizer)
    assert same(found, model.x.detach().numpy(), 1e-12)


@pytest.mark.parametrize(
    ("algorithm", "names"),
    [
        ("fedprox", ["mu", "proximal_mu", "fedprox_mu"]),
        ("scaffold", ["eta_g", "server_learning_rate", "scaffold_server_learning_rate"]),
        ("feddyn", ["alpha", "feddyn_alpha"]),
        ("moon", ["temperature", "tau", "moon_temperature"]),
        ("fedavg", ["aggregator_learning_rate", "server_lr", "server_learning_rate", "eta"]),
    ],
)
def test_hyper_parameters_have_short_names_and_symbols(algorithm, names):
    more = {"aggregator": "fedadam"} if algorithm == "fedavg" else {}
    results = [run(algorithm, **{name: 0.3}, **more) for name in names]
    assert all((result == results[0]).all() for result in results)
    assert not same(results[0], run(algorithm), 1e-6)


@pytest.mark.parametrize(
    ("hyper", "says"),
    [
        ({"muu": 0.1}, r'muu = 0.1: algorithm = "fedprox" has no such key; did you mean mu'),
        ({"aux_data": 1}, r"did you mean auxiliary_data"),
        ({"num_rounds": 9}, r"num_rounds = 9: simulate has an argument for this key, or sets it"),
        ({"mu": 1.0, "fedprox_mu": 2.0}, r"fedprox-mu is given twice"),
        ({"local_steps": 2.7}, r"local_steps = 2.7: give a whole number"),
        ({"mu": -1.0}, r"fedprox-mu = -1.0 cannot be used"),
        ({"mu": "much"}, r"fedprox-mu = 'much' cannot be used"),
        ({"aggregator": "krumm"}, r"aggregator = 'krumm'"),
        ({"rounds": 2.9}, r"rounds = 2.9: give a whole number"),
        ({"rounds": "2.9"}, r"rounds = '2.9': give a whole number"),
        ({"batch_size": 2.9}, r"batch_size = 2.9: give a whole number"),
        ({"seed": "one"}, r"seed = 'one': give a whole number"),
        ({"held_out_fraction": 0.2}, r"held_out_fraction = 0.2: the clients of simulate hold no examples out"),
        ({"local_steps": 0}, r"local_steps = 0: give a whole number >= 1"),
        ({"local_steps": [1, 2]}, r"local_steps = \[1, 2\]: .* >= 1, or one such number for each of 3 clients"),
        ({"dtype": torch.bfloat16}, r"dtype = torch.bfloat16: use"),
        ({"momentum": 0.9, "optimizer": "adam"}, r'momentum = 0.9 belongs to optimizer = "sgd"'),
        ({"rounds": 0}, r"num-rounds = 0"),
        ({"clients": {"a": CLIENTS[0]}}, "give a list with one data set for each"),
        ({"clients": [*CLIENTS, torch.zeros(0, 3)]}, r"client_datasets\[3\] has no examples"),
        ({"clients": [(torch.zeros(2, 3), torch.zeros(3, 3))]}, r"tensors have \[2, 3\] rows"),
        pytest.param({"clients": [iter([1])]}, "a list_iterator cannot be read by index", id="iterator"),
        ({"clients": []}, "client_datasets has no clients"),
        pytest.param({"clients": (data for data in CLIENTS)}, "give a list with one data set for each", id="generator"),
        ({"clients": [(CLIENTS[0], None)]}, r"client_datasets\[0\] cannot be made tensors .*: give numbers"),
        ({"optimizer": torch.optim.SGD}, 'optimizer = .*SGD.*: give "sgd", "adam" or "adamw"'),
        ({"lr": 0.0}, "learning-rate = 0.0"),
        ({"optimizer": "lion"}, "optimizer = 'lion'"),
    ],
    ids=str,
)
def test_bad_input_is_one_sentence(hyper, says):
    with pytest.raises(ConfigError, match=says):
        run("fedprox", **hyper)


def test_fedddpm_without_a_set_and_a_model_that_cannot_draw_one_says_so():
    with pytest.raises(ConfigError, match=r"a Point is not a UNet2DModel, .*give auxiliary_data, override"):
        run("fedddpm")
    with pytest.raises(ConfigError, match="does not use auxiliary_data"):
        run("fedavg", auxiliary_data=CLIENTS[0])
    with pytest.raises(ConfigError, match=r'have no held-out images, .* use memorization_check = "never"'):
        run("fedddpm", auxiliary_sharing="images")
    with pytest.raises(ConfigError, match="auxiliary_data has no examples"):
        run("fedddpm", auxiliary_data=torch.zeros(0, 3))


@pytest.mark.parametrize(("value", "says"), [(None, "NoneType"), (1.0, "float"), (torch.ones(3), r"\(3,\)")], ids=str)
def test_a_loss_that_is_no_scalar_is_told(value, says):
    with pytest.raises(RoundFailedError, match=f"loss_fn returned {says}: return a tensor of one number"):
        simulate("fedavg", Point(), lambda model, batch: value, CLIENTS, 1, 1, 0.1)


def test_a_loss_that_is_no_function_is_refused():
    with pytest.raises(ConfigError, match=r"loss_fn = None: give a function \(model, batch\) -> scalar"):
        simulate("fedavg", Point(), None, CLIENTS, 1, 1, 0.1)


@pytest.mark.parametrize("model", [Point, None, nn.ReLU()], ids=str)
def test_a_model_that_cannot_be_trained_is_refused(model):
    with pytest.raises(ConfigError, match=r"give a torch.nn.Module with parameters to train"):
        simulate("fedavg", model, quadratic, CLIENTS, 1, 1, 0.1)


@pytest.mark.parametrize("algorithm", [None, Point, "FedAvgg"])
def test_what_is_no_algorithm_is_refused(algorithm):
    with pytest.raises(ConfigError, match="algorithm = "):
        run(algorithm)


def test_names_are_taken_as_people_write_them():
    assert (run("FedAvg", local_steps=np.int64(STEPS)) == run("fedavg")).all()
    assert (run("fedavg", local_steps=np.full(3, STEPS)) == run("fedavg")).all()
    assert (run("fedddpm_plus", threshold=-1e9) == run("fedavg")).all()
    assert (run("scaffold", option=1) == run("scaffold", option="I")).all()
    assert (run("fedavg", optimizer="Adam") == run("fedavg", optimizer="adam")).all()


def test_a_misspelt_key_is_not_taken_for_an_option_of_ones_own():
    class Mine(REGISTRY["fedddpm"]):
        pass

    with pytest.raises(ConfigError, match=r"corection_steps = 0: .* did you mean correction_steps"):
        run(Mine, corection_steps=0)
    assert (run(Mine, correction_steps=np.int64(0), strength=0.5) == run("fedavg")).all()


def test_options_of_ones_own_are_added_to_those_in_words_and_have_no_white_space():
    seen = []

    class Mine(REGISTRY["fedavg"]):
        def prepare(self, grid, weights):
            seen.append(self.config.run.options)
            return super().prepare(grid, weights)

    run(Mine, algorithm_options="x=1 y=no", z=3, on=True)
    assert seen == [{"x": 1, "y": "no", "z": 3, "on": True}]
    for value in ("a b=c", "", None):
        with pytest.raises(ConfigError, match=r"z = .*: give a number, True or False, or a text without white space"):
            run(Mine, z=value)


def test_it_is_quiet_and_gives_flowers_log_back(caplog):
    before = logging.getLogger("flwr").level
    run("fedavg")
    assert "ROUND" not in caplog.text
    assert logging.getLogger("flwr").level == before


def test_a_hyper_parameter_without_effect_is_a_warning(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("fedddpm"), "propagate", True)
    caplog.set_level(logging.WARNING, "fedddpm")
    plain = run("fedavg")
    assert not caplog.messages
    ignored = {"dirichlet_alpha": 0.5, "dataset": "mnist", "unet_dropout": 0.1, "output_dir": "here"}
    assert (run("fedavg", moon_mu=2.0, server_ema_decay=0.5, tau=0.1, **ignored) == plain).all()
    keys = {message.partition(" = ")[0] for message in caplog.messages}
    assert keys == {"aggregator-tau", "moon-mu", "server-ema-decay", *(key.replace("_", "-") for key in ignored)}


def test_pooled_data_are_all_parts_in_order():
    class Pair(NamedTuple):
        x: torch.Tensor
        y: torch.Tensor

    parts = [as_training_data(Pair(torch.arange(3.0), torch.arange(3)), torch.float64) for _ in range(2)]
    pooled = Pooled(parts)
    assert len(pooled) == 6
    batch = pooled.batch(torch.tensor([1, 4, 5]))
    assert batch[0].tolist() == [1.0, 1.0, 2.0]
    assert batch[1].tolist() == [1, 1, 2]
    dicts = Pooled([as_training_data({"x": np.ones((2, 1))}, torch.float32)] * 2)
    assert dicts.batch(torch.tensor([0, 3]))["x"].shape == (2, 1)


class Careless(TrainingHook):
    """Writes into what it was sent, and measures it before that."""

    def start_weights(self):
        start = {name: tensor.clone() for name, tensor in self.round.global_weights.items()}
        for tensor in self.round.global_weights.values():
            tensor.add_(1.0)
        return start


class OfCareless(REGISTRY["fedavg"]):
    hook = Careless


def test_a_client_that_writes_into_its_weights_changes_no_others():
    assert (run(OfCareless) == run("fedavg")).all()


def test_random_numbers_of_a_hook_and_of_an_action_are_the_runs():
    """They do not depend on what this process did before, and leave its random numbers alone."""
    drawn = []

    class Draws(TrainingHook):
        def start_weights(self):
            drawn.append(float(torch.rand(())))
            return super().start_weights()

        def on_start(self, model):
            drawn.append(float(torch.rand(())))

        def on_end(self, result, full_gradient):
            drawn.append(float(torch.rand(())))

    def look(request):
        drawn.append(float(torch.rand(())))
        return ActionAnswer({"number": drawn[-1]})

    class Asks(FederatedStrategy):
        hook = Draws
        client_actions = types.MappingProxyType({"look": ClientAction(look, metrics=("number",))})

        def after_aggregation(self, server_round, weights):
            assert len(self.ask_clients("look").answers()) == len(CLIENTS)
            return weights

    def draws_of_a_run(seed):
        drawn.clear()
        simulate(Asks, Point(), quadratic, CLIENTS, 2, 1, 0.1, seed=seed)
        return [*drawn]

    state = torch.get_rng_state()
    first = draws_of_a_run(0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert draws_of_a_run(0) == first
    assert draws_of_a_run(1) != first
    assert len(set(first)) == 2 * len(CLIENTS) * 4  # rounds, clients, draws
