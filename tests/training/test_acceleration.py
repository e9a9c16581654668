import dataclasses
import shutil

import pytest
import torch
from torch import nn

from fedddpm_app.algorithms import REGISTRY
from fedddpm_app.config import ConfigError, load_config
from fedddpm_app.experiment.task import DiffusionTask
from fedddpm_app.training.acceleration import LARGE_MODEL, Acceleration, choose, missing_compiler
from fedddpm_app.training.task import Subset
from fedddpm_app.training.trainer import Trainer
from fedddpm_app.weights import snapshot
from tests.training.test_trainer import CPU, make_data, make_model, pixel_loss

CUDA = torch.device("cuda")


@pytest.fixture
def graphs(monkeypatch):
    """Compile with a back end that runs the graph as it is, and count its calls."""
    real, captured = torch.compile, []

    def backend(graph, _):
        captured.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", lambda model, dynamic, options: real(model, backend=backend, dynamic=dynamic))
    monkeypatch.setattr("fedddpm_app.training.acceleration.missing_compiler", lambda device: "")
    return captured


def with_run(config, **changes):
    return dataclasses.replace(config, run=dataclasses.replace(config.run, **changes))


def model_of(num_parameters):
    return nn.Linear(num_parameters, 1, bias=False, device="meta")


def chosen(config, device=CPU, num_parameters=LARGE_MODEL):
    return choose(config.run, model_of(num_parameters), device)


def test_the_defaults_are_plain_torch_on_a_cpu(config):
    assert chosen(config) == Acceleration()


def test_auto_takes_bf16_where_the_cpu_has_it_and_the_model_is_large(config, monkeypatch):
    config = with_run(config, precision="auto")
    for native in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert chosen(config).precision == ("bf16" if native else "fp32")
        assert chosen(config, num_parameters=LARGE_MODEL - 1).precision == "fp32"


def test_auto_never_compiles_nor_joins_channels_last_with_a_compiled_model(config, monkeypatch):
    monkeypatch.setattr("fedddpm_app.training.acceleration.missing_compiler", lambda device: "")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    config = with_run(config, precision="auto")
    assert chosen(config, CUDA) == Acceleration("bf16")
    assert chosen(config, CUDA, LARGE_MODEL - 1) == Acceleration()
    assert chosen(with_run(config, compile="on"), CUDA) == Acceleration("bf16", compiled=True)


def test_a_compiled_channels_last_model_is_refused(run_config):
    with pytest.raises(ConfigError, match=r'wrong gradients .* use memory-format = "contiguous"'):
        load_config(run_config | {"compile": "on", "memory-format": "channels-last"})


def test_without_a_compiler_auto_runs_and_on_is_refused_with_the_fix(config, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "no C++ compiler" in missing_compiler(CPU)
    assert not chosen(config).compiled
    with pytest.raises(ConfigError, match=r'compile = "on": there is no C\+\+ compiler .*install.*compile = "off"'):
        chosen(with_run(config, compile="on"))


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", REGISTRY)
def test_every_algorithm_does_the_same_when_accelerated(run_app, graphs, algorithm):
    settings = {"algorithm": algorithm, "optimizer": "sgd", "gradient_clip": 0.0, "eval_every": 0, "preview_every": 0}
    settings |= {"num_clients": 2, "plus_threshold": 1e9}
    settings |= {"num_rounds": 3 if algorithm == "fedddpm-plus" else 2}  # one after the first that differs from FedAvg
    plain = run_app(**settings)
    for option in ({"memory_format": "channels-last"}, {"compile": "on"}):
        run = run_app(**settings, **option)
        before, after = ([row["train/loss"] for row in each.rounds() if "train/loss" in row] for each in (plain, run))
        assert after == pytest.approx(before, rel=1e-4)
        assert plain.summary["metrics"] == pytest.approx(run.summary["metrics"], rel=1e-4)
    assert graphs


@pytest.mark.slow
def test_one_process_compiles_its_model_once_over_clients_and_rounds(run_app, graphs):
    run_app(algorithm="fedavg", compile="on", num_rounds=1, num_clients=2)
    once = len(graphs)
    graphs.clear()
    torch._dynamo.reset()
    run_app(algorithm="fedavg", compile="on", num_rounds=2, num_clients=3, held_out_fraction=0.13)
    assert once == len(graphs) == 1


def test_a_hook_on_the_model_is_called_though_the_model_is_compiled(config, graphs):
    seen = []
    trainer = Trainer(make_model(), pixel_loss, config.training, CPU, Acceleration(compiled=True))
    start = snapshot(trainer.model)
    trainer.train(start, make_data(1), steps=2, seed=0)
    handle = trainer.model[0].register_forward_hook(lambda *_: seen.append(1))
    trainer.train(start, make_data(1), steps=3, seed=0)
    handle.remove()
    trainer.train(start, make_data(1), steps=2, seed=0)
    assert len(seen) == 3
    assert len(graphs) == 1


def test_what_leaves_a_channels_last_model_is_contiguous(config):
    task = DiffusionTask(config)
    trainer = Trainer(task.create_model(), task.loss_fn, config.training, CPU, Acceleration(channels_last=True))
    assert not trainer.model.conv_out.weight.is_contiguous()
    data = Subset.spread(task.train_data(0), 20)
    result = trainer.train(snapshot(trainer.model), data, steps=2, seed=0, ema_decay=0.5)
    gradient = trainer.full_gradient(result.weights, data, 0)
    assert all(tensor.is_contiguous() for tensor in (*result.weights.values(), *gradient.values()))


@pytest.mark.slow
@pytest.mark.long
def test_compiled_code_has_the_gradients_of_eager_code(config):
    """Losses alone would not tell: a wrong backward pass of torch's compiler changed them by a hundredth."""
    if missing_compiler(CPU):
        pytest.skip(missing_compiler(CPU))
    task, gradients = DiffusionTask(config), []
    for compiled in (False, True):
        trainer = Trainer(task.create_model(), task.loss_fn, config.training, CPU, Acceleration(compiled=compiled))
        trainer.train(snapshot(trainer.model), task.train_data(0), steps=1, seed=0)
        gradients.append({name: p.grad for name, p in trainer.model.named_parameters()})
    for name, expected in gradients[0].items():
        assert float((gradients[1][name] - expected).norm()) <= 1e-3 * float(expected.norm()) + 1e-7, name


def test_a_device_without_bf16_keeps_float32(config):
    assert chosen(with_run(config, precision="auto"), torch.device("mps")).precision == "fp32"
