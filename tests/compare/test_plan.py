"""Costs are those of the algorithms; the data are the digits with 4 clients."""

import json
from pathlib import Path

import pytest

from fedddpm_app.algorithms.fedddpm import FedDDPM
from fedddpm_app.compare.cells import Line, State, state_of
from fedddpm_app.compare.plan import far_from_budget, make_plan
from fedddpm_app.compare.solver import solve
from fedddpm_app.compare.spec import GridSpec, read_spec
from fedddpm_app.config import ConfigError, default_run_config
from fedddpm_app.federation.cost import Cost
from tests.compare.conftest import GRIDS
from tests.conftest import TINY


@pytest.mark.parametrize(
    ("cost", "budget", "value"),
    [
        (lambda v: 3 * v, 10, 3),
        (lambda v: 3 * v, 9, 3),
        (lambda v: v / 3, 1, 3),  # the cost of 3 is not exactly 1
        (lambda v: 100 + v // 7, 101, 13),  # in steps
        (lambda v: 2**20 * v, 2**40, 2**20),
    ],
)
def test_the_largest_value_within_the_budget(cost, budget, value):
    assert solve(cost, budget) == value


def test_a_budget_that_fits_nothing_and_a_cost_without_the_key_are_errors():
    with pytest.raises(ConfigError, match="it costs 3 even with the value 1, more than the budget of 2"):
        solve(lambda v: 3 * v, 2)
    with pytest.raises(ConfigError, match="its cost does not depend on this key"):
        solve(lambda v: 3, 5)


def plan(folder=Path("/nowhere"), **changes):
    spec = {
        "name": "a",
        "reference": "fedavg",
        "seeds": [3, 5],
        "metrics": ["fd-classifier"],
        "base": {"local-steps": 4, "batch-size": 8, "num-rounds": 6, "auxiliary-sampler-steps": 2},
        "conditions": {"iid": {"partition": "iid"}, "disjoint": {"partition": "disjoint-classes"}},
        "rows": {"fedavg": {}, "fedddpm": {"pretrain-steps": 3, "correction-steps": 2, "auxiliary-size": 12}},
    }
    defaults = default_run_config() | TINY
    return make_plan(GridSpec.model_validate(spec | changes), folder, defaults, "grid.toml")


def test_equal_steps():
    """4 clients x 4 steps x 6 rounds = 96; FedDDPM: 12 + 12 * 2 / 3 / 8 = 13, and 18 per round."""
    found = plan()
    reference, other = found.settings[0], found.settings[2]
    assert (reference.budget, reference.cost.steps, reference.solved) == (96, 96, {})
    assert (other.budget, other.cost.steps, other.solved) == (96, 13 + 4 * 18, {"num-rounds": 4})
    assert other.keys["num-rounds"] == other.config.run.num_rounds == 4
    assert far_from_budget(found) == {"fedddpm": pytest.approx(85 / 96 - 1)}


def test_a_second_key_uses_the_rest():
    """After 4 rounds 11 steps are left: 2.75 more correction steps per round, so 2 more."""
    rows = {
        "fedavg": {},
        "fedddpm": {"pretrain-steps": 3, "auxiliary-size": 12, "solve": ["num-rounds", "correction-steps"]},
    }
    other = plan(rows=rows).settings[2]
    assert (other.solved, other.cost.steps) == ({"num-rounds": 4, "correction-steps": 4}, 13 + 4 * 20)


def test_equal_bytes_and_a_given_budget():
    """A round exchanges 4 models up and 4 down, pretraining once more; the budget allows 5 such exchanges."""
    found = plan(match="bytes", budget=40.0)
    assert [s.solved for s in found.settings[::2]] == [{"num-rounds": 5}, {"num-rounds": 4}]


def test_equal_rounds_leave_every_row_alone():
    assert [s.config.run.num_rounds for s in plan(match="rounds").settings] == [6, 6, 6, 6]


def test_the_first_seed_of_all_rows_comes_first():
    cells = [(c.seed, c.setting.condition, c.setting.line.row, c.directory) for c in plan().cells]
    assert [cell[:3] for cell in cells[:4]] == [
        (3, "iid", "fedavg"),
        (3, "iid", "fedddpm"),
        (3, "disjoint", "fedavg"),
        (3, "disjoint", "fedddpm"),
    ]
    assert cells[-1] == (5, "disjoint", "fedddpm", Path("/nowhere/fedddpm/disjoint/seed-5"))


def test_a_sweep_runs_a_row_once_if_its_key_has_no_effect_there():
    rows = {"fedavg": {}, "fedddpm": {"correction-steps": 2, "auxiliary-size": 12}}
    found = plan(rows=rows, sweep={"key": "pretrain-steps", "values": [2, 3], "reference": 2})
    assert [s.line for s in found.settings[::2]] == [
        Line("fedavg"),
        Line("fedddpm", "pretrain-steps", 2),
        Line("fedddpm", "pretrain-steps", 3),
    ]
    reference, _, first, _, second, _ = found.settings
    assert found.compared_with(reference) == {}
    assert found.compared_with(first) == {"fedavg": reference}
    assert found.compared_with(second) == {"fedavg": reference, "pretrain-steps = 2": first}
    assert found.cells[1].directory == Path("/nowhere/fedddpm/pretrain-steps-2/iid/seed-3")


def test_a_sweep_of_a_key_without_effect_is_refused():
    with pytest.raises(ConfigError, match=r"sweep\.key = 'pretrain-steps' has no effect in any row"):
        plan(rows={"fedavg": {}}, sweep={"key": "pretrain-steps", "values": [2, 3]})


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [path for path in GRIDS if 'dataset = "digits"' in path.read_text()], ids=lambda p: p.stem
)
def test_the_grids_of_the_repository_fit_their_budgets(path):
    found = make_plan(read_spec(path, {}), Path("/nowhere"), default_run_config(), path.name)
    assert all(abs(difference) < 0.06 for difference in far_from_budget(found).values())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"budget": 20.0},
            "grid.toml: row fedddpm, condition iid: solve = 'num-rounds': it costs 31 even with the value 1, more than "
            "the budget of 20; use another key",
        ),
        (
            {"rows": {"fedavg": {}, "fedprox": {"fedprox-mu": -1}}},
            "grid.toml: row fedprox, condition iid: fedprox-mu = -1 cannot be used",
        ),
        (
            {"rows": {"fedavg": {"algorithm": "fedavgg"}, "fedprox": {}}},
            'grid.toml: row fedavg, condition iid: algorithm = "fedavgg" is not known',
        ),
        (
            {"match": "bytes", "budget": 40.0, "rows": {"fedavg": {}, "fedprox": {"wire-dtype": "bf16"}}},
            'grid.toml: wire-dtype = "fp32" (row fedavg) and wire-dtype = "bf16" (row fedprox): match = "bytes" counts',
        ),
        (
            {"conditions": {"many": {"num-clients": 2000}}},
            "grid.toml: row fedavg, condition many: ",
        ),
    ],
)
def test_a_cell_that_cannot_run_is_named_once(changes, says):
    with pytest.raises(ConfigError) as error:
        plan(**changes)
    assert str(error.value).count("\n") == 0
    assert says in str(error.value)


def test_solved_values_are_kept_when_the_expected_cost_changes(tmp_path, monkeypatch):
    """A grid that takes several days continues with a version that counts another cost."""
    before = plan(tmp_path, match="steps")
    before.solved.save()
    monkeypatch.setattr(FedDDPM, "cost_of_own_models", lambda *_: Cost(0.0))
    kept, fresh = plan(tmp_path, match="steps"), plan(tmp_path / "new", match="steps")
    assert [s.solved for s in kept.settings] == [s.solved for s in before.settings]
    assert [s.solved for s in fresh.settings] != [s.solved for s in before.settings]
    grown = plan(tmp_path, match="steps", seeds=[3, 5, 7])
    assert [s.solved for s in grown.settings] == [s.solved for s in before.settings]
    for changes in ({"match": "steps", "budget": 200.0}, {"match": "bytes"}):
        other, new = (plan(folder, **changes) for folder in (tmp_path, tmp_path / "new"))
        assert [s.solved for s in other.settings] == [s.solved for s in new.settings]
        assert [s.solved for s in other.settings] != [s.solved for s in before.settings]


def test_seeds_may_be_added_where_the_reference_costs_depend_on_them(tmp_path):
    """The budget is the mean cost of the reference row, and clients have other numbers of images with another seed."""
    changes = {"base": {"local-steps": 0, "local-epochs": 1, "num-rounds": 6, "auxiliary-sampler-steps": 2}}
    changes |= {"conditions": {"dirichlet": {"partition": "dirichlet", "dirichlet-alpha": 0.1}}}
    row = {"num-rounds": 2, "pretrain-steps": 3, "auxiliary-size": 12, "solve": "correction-steps"}
    changes |= {"rows": {"fedavg": {}, "fedddpm": row}}
    before = plan(tmp_path, **changes)
    before.solved.save()
    grown, fresh = (plan(folder, seeds=[3, 5, 7], **changes) for folder in (tmp_path, tmp_path / "new"))
    assert grown.settings[0].budget == fresh.settings[0].budget != before.settings[0].budget
    assert grown.settings[1].solved == before.settings[1].solved != fresh.settings[1].solved
    longer = plan(tmp_path, **{**changes, "base": changes["base"] | {"num-rounds": 9}})
    assert longer.settings[1].solved != before.settings[1].solved


def test_every_line_of_a_swept_reference_has_its_own_cost_as_the_budget():
    swept = plan(sweep={"key": "correction-steps", "values": [2, 5]}, reference="fedddpm", conditions={"iid": {}})
    lines = [setting for setting in swept.settings if setting.line.row == "fedddpm"]
    assert [setting.budget for setting in lines] == [setting.cost.steps for setting in lines]
    assert lines[0].budget < lines[1].budget


def test_damaged_solved_values_are_solved_for_again(tmp_path):
    (tmp_path / "solved.json").write_text('{"settings": [{"name": 3}, 7]')
    assert [s.solved for s in plan(tmp_path, match="steps").settings] == [
        s.solved for s in plan(match="steps").settings
    ]


@pytest.mark.parametrize(
    ("key", "value", "state"),
    [
        ("moon-mu", 7.0, State.STARTED),  # fedavg does not use it
        ("node-timeout", 7.0, State.STARTED),
        ("learning-rate", 7.0, None),
        ("eval-images", 7, None),
    ],
)
def test_only_keys_with_an_effect_make_another_cell(tmp_path, key, value, state):
    made = plan(tmp_path)
    cell = made.cells[0]
    cell.directory.mkdir(parents=True)
    config = {**made.defaults, **cell.overrides, key: value}
    (cell.directory / "config.json").write_text(json.dumps({"run_config": config}))
    if state is None:
        with pytest.raises(ConfigError, match=f"{key} was 7"):
            state_of(cell, made.defaults)
    else:
        assert state_of(cell, made.defaults) is state
