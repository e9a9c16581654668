import contextlib
import os
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedddpm_app.config import ConfigError, default_run_config, kinds_of_keys, known_keys, load_config, read_overrides

KINDS = kinds_of_keys()
DEFAULTS = default_run_config()
EXAMPLES = int(os.environ.get("OVERRIDES_EXAMPLES", "200"))


def read(*texts):
    return read_overrides("-c", texts, KINDS)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("algorithm=fedavg dataset=digits", {"algorithm": "fedavg", "dataset": "digits"}),
        ("run-name=2024 class-names=true", {"run-name": "2024", "class-names": "true"}),  # keys of text
        ("class-conditional=True horizontal-flip=FALSE", {"class-conditional": True, "horizontal-flip": False}),
        ("seed=1, num-clients=2,", {"seed": 1, "num-clients": 2}),
        ("seed=1,num-clients=2;num-rounds=3", {"seed": 1, "num-clients": 2, "num-rounds": 3}),
        ("seed = 1 num-rounds =2 num-clients= 3", {"seed": 1, "num-rounds": 2, "num-clients": 3}),
        ("unet-channels=16,32, seed=1", {"unet-channels": "16,32", "seed": 1}),
        ("learning-rate=1e-3 weight-decay=.5 auxiliary-size=1_000", {"learning-rate": 1e-3, "weight-decay": 0.5,
                                                                     "auxiliary-size": 1000}),
        ("dataset=path:/Bjørn's", {"dataset": "path:/Bjørn's"}),
        ("dataset=\"path:/Bjørn's [v2] a=b #1, c\" seed=1", {"dataset": "path:/Bjørn's [v2] a=b #1, c", "seed": 1}),
        ("dataset='path:C:\\data'", {"dataset": "path:C:\\data"}),
        (r'dataset="a\"b\\c\u00e9"', {"dataset": 'a"b\\cé'}),
        ("\ufeffseed=1", {"seed": 1}),
        ("seed=1  # a comment\nrun-name=\"a\"\n", {"seed": 1, "run-name": "a"}),
        ("algorithm-options=strength=0.1", {"algorithm-options": "strength=0.1"}),
        ('run-name=""', {"run-name": ""}),
        ("", {}),
    ],
)  # fmt: skip
def test_what_people_type_is_read(text, values):
    overrides = read(text)
    assert (overrides.values, overrides.problems) == (values, [])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("batch-size", "batch-size has no value; write batch-size=value"),
        ("seed:1", "seed:1 has no value; write seed=value"),
        ("num-rounds: 3", "write num-rounds=value"),
        ("run-name=", 'write run-name=value, or run-name="" for an empty text'),
        ("seed= num-clients=2", "seed has no value"),
        ("seed==1", "seed==1 has two equals signs; write seed=1"),
        ("=5", "has no key in front"),
        ("seed=1 seed=2", "seed is given twice (1 and 2)"),
        (
            "dataset=path:/my data/x",
            "data/x has no value; write dataset=value, and quotes around a text with spaces; the name of a",
        ),
        ("dataset='it's'", "s' follows the closing quote"),
        ('run-name="a', "the quote is not closed"),
        ("run-name=“a”", "straight double quotes"),
        ('dataset=path:"/a"', "double quotes around the whole text"),
        (r'dataset="C:\data"', "a backslash in double quotes starts an escape"),
        ("missing.toml", "missing.toml: the file cannot be read (No such file or directory)"),
        ("a=b/missing.toml seed=1", "such"),
        ("missing.toml seed=1", "missing.toml: the file cannot be read"),
        ("\0.toml", "the file cannot be read"),
        ("~nobody-of-this-name/a.toml", "the file cannot be read"),
        ("/.toml", "the file cannot be read"),
        ("seed=1 conf/a.toml", "conf/a.toml is a file, which comes first or has an option of its own"),
    ],
)
def test_what_cannot_be_read_is_named_with_the_fix(text, says):
    overrides = read(text)
    with pytest.raises(ConfigError) as raised:
        load_config(DEFAULTS | overrides.values, overrides.problems)
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("content", "values", "says"),
    [
        (b"\xef\xbb\xbfseed = 3\r\nnum-rounds = 1\r\n", {"seed": 3, "num-rounds": 1}, None),
        ('dataset = "path:/Bjørn\'s"'.encode(), {"dataset": "path:/Bjørn's"}, None),
        (b"seed = 3\nalgorithm = fedavg", {}, "line 2, column 13): algorithm = fedavg; a text needs double quotes"),
        (b"seed = 3\nseed = 4", {}, "a key comes once"),
        (b"[tool.flwr.app.config]\nseed = 3", {}, "[tool] is a table; write the keys without a heading"),
        (b"unet-channels = [16, 32]", {}, "unet-channels = [16, 32] is not a number, a text, true or false"),
        ("seed = 3".encode("utf-16"), {}, "not in UTF-8"),
        (b"seed = " + b"[" * 20000, {}, "cannot be read"),
        (b"seed = " + b"9" * 5000, {}, "cannot be read"),
        (b"seed = 0x" + b"f" * 5000, {}, "has a number of 20,000 bits"),
    ],
)
def test_a_file_is_read_or_named_with_the_line(tmp_path, content, values, says):
    path = tmp_path / "Bjørn's [v2] a=b #1.toml"
    path.write_bytes(content)
    overrides = read(str(path))
    assert overrides.values == values
    assert [says in problem and str(path) in problem for problem in overrides.problems] == [True] * bool(says)
    later = read(f"{path} seed=5, num-clients=2")  # pairs may follow the path
    assert (later.values["seed"], later.values["num-clients"]) == (5, 2)


def test_all_that_is_wrong_is_said_at_once():
    overrides = read("lr=0.1 epochs=3 gpu=0 batch-size=-1 image-size=9", 'momentum=0.9 seed="1" xyzzy=1 x')
    with pytest.raises(ConfigError) as raised:
        load_config(DEFAULTS | overrides.values, overrides.problems)
    lines = str(raised.value).splitlines()
    for each in (
        "-c x has no value",
        "lr = 0.1: there is no such key; did you mean learning-rate?",
        "epochs = 3: there is no such key; did you mean local-epochs?",
        "gpu = 0: there is no such key; did you mean device?",
        "xyzzy = 1: there is no such key; `fedddpm config` lists all keys.",
        "batch-size = -1 cannot be used: it should be greater",
        "seed = '1' cannot be used: it should be a valid integer, without quotes.",
        "image-size = 9 cannot be halved",
        'momentum = 0.9 belongs to optimizer = "sgd"',
    ):
        assert len([line for line in lines if line.startswith(each)]) == 1, each
    assert len(lines) == 9


def test_a_value_that_is_not_valid_causes_no_complaint_about_others():
    with pytest.raises(ConfigError) as raised:
        load_config(DEFAULTS | {"unet-channels": "x", "image-size": 9, "preview-sampler-steps": 0})
    assert [line.partition(" ")[0] for line in str(raised.value).splitlines()] == [
        "unet-channels",
        "preview-sampler-steps",
    ]


WORDS = st.one_of(
    st.sampled_from(
        [*known_keys(), "lr", "epochs", "x.toml", "=", '"', "'", ",", " ", "\n", "true", "True", "1", "-1"]
    ),
    st.text(string.printable, max_size=6),
    st.text(max_size=4),
    st.integers().map(str),
    st.floats().map(str),
)
PAIRS = st.tuples(st.sampled_from(known_keys()), st.sampled_from(["=", " = ", "=="]), WORDS, st.just(" ")).map("".join)
TEXTS = st.lists(st.one_of(PAIRS, WORDS), max_size=6).map("".join)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(TEXTS, max_size=3))
def test_any_text_is_read_or_a_config_error(texts):
    overrides = read(*texts)
    with contextlib.suppress(ConfigError):
        load_config(DEFAULTS | overrides.values, overrides.problems)
