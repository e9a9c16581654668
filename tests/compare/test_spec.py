import pytest

from fedddpm_app.compare.spec import read_spec
from fedddpm_app.config import ConfigError
from tests.compare.conftest import GRIDS

GOOD = """
name = "a"
reference = "fedavg"
seeds = [0]
metrics = ["fd-classifier"]
{more}
[conditions.iid]
partition = "iid"
{condition}
[rows.fedavg]
{row}
[rows.b]
algorithm = "fedprox"
{other}
"""


NOTHING: dict[str, object] = {}


def read(tmp_path, text=GOOD, more="", condition="", row="", other="", extra=NOTHING):
    path = tmp_path / "grid.toml"
    path.write_text(text.format(more=more, condition=condition, row=row, other=other))
    return read_spec(path, extra)


def test_a_grid_file_is_read(tmp_path):
    spec = read(
        tmp_path,
        more="[base]\nlocal-steps = 3",
        other='solve = ["num-rounds", "local-steps"]',
        extra={"batch-size": 4},
    )
    assert spec.base == {"local-steps": 3, "batch-size": 4}
    assert spec.keys_of_row("fedavg") == {"algorithm": "fedavg"}
    assert spec.keys_of_row("b") == {"algorithm": "fedprox"}
    assert spec.solved_keys("fedavg") == []  # its cost is the budget
    assert spec.solved_keys("b") == ["num-rounds", "local-steps"]


@pytest.mark.parametrize("text", ["<img src=x>", "a `b`", "a | b", "![x](http://x/y)", "two\\nlines", "\\u001b[31m"])
@pytest.mark.parametrize("key", ["title", "sweep.values"])
def test_a_grid_file_writes_no_markup_into_its_results(tmp_path, key, text):
    """They are Markdown, and the README has the title and the lines of a sweep."""
    more = f'title = "{text}"' if key == "title" else ""
    other = "" if key == "title" else f'[sweep]\nkey = "dataset"\nvalues = ["{text}"]'
    with pytest.raises(ConfigError, match=rf"{key} = .*markup"):
        read(tmp_path, more=more, other=other)


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_the_grids_of_the_repository_are_valid(path):
    assert read_spec(path, {}).title


@pytest.mark.parametrize(
    ("part", "text", "says"),
    [
        (
            "more",
            'trade_off = ["fd-classifier"]',
            "trade_off = 'fd-classifier' is not one of the metrics after the first, fd-classifier: add it to metrics.",
        ),
        ("more", "sedes = [1]", "sedes = [1]: there is no such key; did you mean seeds?"),
        (
            "more",
            "local-steps = 3",
            "local-steps = 3: there is no such key; it is a key of runs: write it below [base]",
        ),
        ("more", 'match = "bits"', "match = 'bits' cannot be used: it should be 'rounds', 'steps' or 'bytes'."),
        ("more", "budget = -1", "budget = -1 cannot be used: it should be greater than 0."),
        ("more", 'match = "rounds"\nbudget = 4.0', 'budget = 4 has no meaning with match = "rounds": leave it out.'),
        ("more", "[base]\nseed = 3", "base.seed = 3: the command sets this key; leave it out"),
        ("more", "[base]\nlocalsteps = 3", "base.localsteps = 3: there is no such key; did you mean local-steps?"),
        ("condition", "x = [1]", "conditions.iid.x = [1] is not a number, a text, true or false; write one of these."),
        ("row", "lr = 1.0", "rows.fedavg.lr = 1.0: there is no such key; did you mean learning-rate?"),
        ("other", "num-rounds = 4", "rows.b.num-rounds = 4: the command solves for this key; leave it out, or set"),
        ("other", 'solve = "rounds"', "rows.b.solve = 'rounds': rounds is not a key; did you mean num-rounds?"),
        ("other", 'solve = "learning-rate"', "solve = 'learning-rate': learning-rate does not take whole numbers"),
        ("other", "solve = 3", "rows.b.solve = 3 cannot be used: it should be a key, a list of keys or an empty text."),
        ("other", "[rows.'a/b']", "rows.a/b cannot be a name: it should have at most 60 letters"),
        (
            "other",
            "[sweep]\nkey = 'local-step'\nvalues = [1]",
            "sweep.key = 'local-step': there is no such key; did you",
        ),
        ("other", "[sweep]\nkey = 'local-steps'\nvalues = []", "sweep.values = [] cannot be used"),
        (
            "other",
            "[sweep]\nkey = 'local-steps'\nvalues = [1, 2]\nreference = 3",
            "sweep.reference = 3 is not one of the values [1, 2].",
        ),
        (
            "other",
            "[sweep]\nkey = 'local-steps'\nvalues = [1, 2]\nreference = 2",
            "sweep.reference = 2 compares lines of a row, which have no common budget: give budget",
        ),
        ("other", "[sweep]\nkey = 'num-rounds'\nvalues = [1]", "sweep.key = 'num-rounds' is solved for in [rows.b]"),
        (
            "other",
            "[sweep]\nkey = 'partition'\nvalues = ['iid']",
            "sweep.key = 'partition' is also a key of iid: leave",
        ),
    ],
)
def test_a_problem_is_one_sentence_with_file_key_value_and_fix(part, text, says, tmp_path):
    with pytest.raises(ConfigError) as error:
        read(tmp_path, **{part: text})
    assert str(error.value).count("\n") == 0
    assert str(error.value).startswith(f"{tmp_path}/grid.toml: ")
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("seeds = [0]\n", "", "seeds is missing: add it; docs/comparing.md describes a grid file."),
        ("seeds = [0]", "seeds = [1, 1]", "seeds = [1, 1]: a value comes twice; give each once."),
        ("seeds = [0]", "seeds = [-1]", "seeds.0 = -1 cannot be used: it should be greater than or equal to 0."),
        ('"fedavg"', '"fedavgg"', "reference = 'fedavgg' is not a row: use one of fedavg, b."),
        ('name = "a"', 'name = "a/b"', "name = 'a/b' cannot be used: it should have at most 60 letters"),
        ("seeds = [0]", "seeds = [", "cannot be read"),
    ],
)
def test_a_problem_of_the_head_too(before, after, says, tmp_path):
    with pytest.raises(ConfigError) as error:
        read(tmp_path, text=GOOD.replace(before, after, 1))
    assert str(error.value).count("\n") == 0
    assert says in str(error.value)
