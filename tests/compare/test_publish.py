import pytest

from fedddpm_app.compare.notes import caveat_note, clients_left_out, cost_note, measured_note
from fedddpm_app.compare.numbers import number, signed
from fedddpm_app.compare.publish import origin_of, section, with_section, without_places
from fedddpm_app.compare.reference import limits_of
from fedddpm_app.compare.table import means_of, page, sentences_of, table_of
from tests.conftest import ROOT


def setting(row, condition, mean, difference=None, steps=640.0, seeds=3):
    low, high = (None, None) if difference is None else (difference - 1, difference + 1)
    paired = None if difference is None else {"mean": difference, "low": low, "high": high, "n": seeds}
    metric = {"mean": mean, "low": mean - 1, "high": mean + 1, "n": 3, "sd": 0.5, "floor": 1.0}
    metric["differences"] = {} if paired is None else {"fedavg": paired, "worse": paired | {"low": -9.0, "high": 9.0}}
    costs = {"steps": steps, "up_mb": 26.04, "down_mb": 26.04, "seconds": 90.0}
    expected = {"steps": 640.0, "models_up": 40.0, "models_down": 40.0, "budget": 640.0}
    names = {"row": row, "label": row, "sweep": {}, "condition": condition}
    return {**names, "n": 3, "metrics": {"fd": metric}, "solved": {}, "expected": expected, **costs}


RESULTS = {
    "reference": "fedavg",
    "also_against": [],
    "match": "steps",
    "seeds": [0, 1, 2],
    "grid": {"sweep": None},
    "measured": {"fd": {"better": "lower"}},
    "settings": [
        setting("fedavg", "skew", 16.25),
        setting("fedavg", "iid", 4.0),
        setting("late", "skew", 4.25, -12.0),
        setting("late", "iid", 4.5, 0.5),
        setting("worse", "skew", 20.0, 3.75),
    ],
}


def test_the_readme_has_the_table_of_the_published_results():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_section(readme, section(ROOT / "results")) == readme, "run `make results-table`"


def test_without_published_results_the_section_says_so(tmp_path):
    assert "No grid is published yet." in section(tmp_path)


def test_the_table_has_mean_deviation_and_paired_difference():
    lines = table_of(RESULTS, "fd").splitlines()
    assert lines[2] == "| fedavg | 16.2 ± 0.5 | 4.00 ± 0.50 | 640 | 80.0 | 26.0, 26.0 | 1.50 |"
    assert lines[3].startswith("| late | 4.25 ± 0.50 (−12.0 [−13.0, −11.0]) | 4.50 ± 0.50 (+0.500 [−0.500, +1.500]) |")
    assert lines[4].startswith("| worse | 20.0 ± 0.5 (+3.75 [+2.75, +4.75]) | – |")
    assert table_of(RESULTS, "fd", with_costs=False).splitlines()[2] == "| fedavg | 16.2 ± 0.5 | 4.00 ± 0.50 |"


def test_the_means_of_the_other_metrics_have_a_column_for_each_condition_and_the_bytes():
    more = {"tv": {"mean": 0.25, "n": 3}}
    settings = [s | {"metrics": s["metrics"] | (more if s["condition"] == "skew" else {})} for s in RESULTS["settings"]]
    lines = means_of(RESULTS | {"metrics": ["fd", "tv"], "settings": settings}).splitlines()
    assert lines[0] == "| means over complete seeds | tv, skew | tv, iid | MB up, down |"
    assert lines[2] == "| fedavg | 0.250 | – | 26.0, 26.0 |"
    assert lines[4] == "| worse | 0.250 | – | 26.0, 26.0 |"
    fewer = [settings[0] | {"metrics": {"tv": {"mean": 0.25, "n": 2}}}]
    lines = means_of(RESULTS | {"metrics": ["fd", "tv"], "settings": fewer}).splitlines()
    assert lines[2] == "| fedavg | 0.250, 2 of 3 seeds | 26.0, 26.0 |"
    assert means_of(RESULTS | {"metrics": ["fd"]}) == ""


def test_an_attack_is_described_by_its_images_and_its_floor():
    attack = {"n": 500, "reference_n": 480, "reference": "held-out and test", "extractor": "threshold on the loss"}
    how = attack | {"better": "lower", "sampler": "", "steps": 0, "others": []}
    note = measured_note(RESULTS | {"measured": {"membership": how}}, "membership")
    assert note == (
        "Area under the ROC curve of an attack by threshold on the loss, which separates 500 training images from 480 "
        "others (held-out and test). Lower is better. Floor, that of guesses: 0.5."
    )


def test_an_attack_that_finds_less_than_guesses_is_not_called_better():
    """The floor is 1 here; fd itself may be below it, such as by chance."""
    settings = [setting("fedavg", "skew", 4.0), setting("late", "skew", 0.9, -3.1), setting("worse", "skew", 1.5, -2.5)]
    attack = RESULTS | {"measured": {"fd": {"better": "lower", "sampler": ""}}, "settings": settings}
    assert sentences_of(attack, "fd")[:2] == [
        "fd is lower (better) than that of fedavg, and the interval excludes zero: worse (skew).",
        "fd is lower than that of fedavg, and the interval excludes zero, but below that of guesses, so that it is "
        "neither better nor worse: late (skew).",
    ]
    images = attack | {"measured": {"fd": {"better": "lower", "sampler": "ddim"}}}
    assert sentences_of(images, "fd")[0].endswith(" zero: late (skew); worse (skew).")


def test_cells_that_left_clients_out_are_named():
    named = {"label": "late", "condition": "skew", "seed": 1}
    cells = [named, named | {"seed": 2, "left_out": {"pretrain": ["7"], "train": ["1", "7"]}}]
    assert clients_left_out({"cells": cells}) == ["late, skew, seed 2: pretrain without 7, train without 1, 7"]


def test_a_reason_is_no_markup_in_a_table():
    """The text of a client may be in it, and a page is shown by others."""
    failed = {"label": "late", "condition": "skew", "seed": 1, "status": "failed"}
    failed["reason"] = "client 3: `![x](http://x/y)` <img src=x>\n# end | \x1b[31m"
    results = RESULTS | {"metrics": [], "title": "t", "cells": [failed, failed | {"reason": ""}]}
    lines = page(results).splitlines()
    assert "- late, skew, seed 1: `client 3: '![x](http://x/y)' <img src=x> # end |`" in lines
    assert "- late, skew, seed 1: failed" in lines


def test_a_deviation_or_a_difference_far_below_the_mean_does_not_look_like_zero():
    assert (number(0.0123, 0.0), number(0.5, 16.25)) == ("0.0123", "0.5")
    assert (number(0.031, 10.5), signed(0.31, 123.4), number(0.0, 10.5)) == ("0.03", "+0.3", "0.0")
    small = RESULTS | {"settings": [setting("late", "skew", 16.25, -0.04)]}
    assert "(−0.0400 [−1.0400, +0.9600])" in table_of(small, "fd")


def test_only_intervals_that_exclude_zero_make_a_claim():
    assert sentences_of(RESULTS, "fd") == [
        "fd is lower (better) than that of fedavg, and the interval excludes zero: late (skew).",
        "fd is higher (worse) than that of fedavg, and the interval excludes zero: worse (skew).",
        "No difference to fedavg is shown, because the interval contains zero: late (iid).",
        "With Holm's correction for the 3 differences to fedavg, 2 of the 2 shown remain.",
        "If no row differed, 0.2 of these 3 intervals would exclude zero by chance.",
    ]


def test_the_interval_in_the_picture_is_that_of_the_difference():
    assert limits_of(RESULTS, "late", "skew", "fd") == [16.25 - 13, 16.25 - 11]
    assert limits_of(RESULTS, "fedavg", "skew", "fd") == []
    assert limits_of(RESULTS, "worse", "iid", "fd") == []
    fewer = RESULTS | {"settings": [RESULTS["settings"][0], setting("late", "skew", 4.25, -12.0, seeds=2)]}
    assert limits_of(fewer, "late", "skew", "fd") == []  # the means are of other seeds


def test_caveats_about_values_are_marked_and_stand_below_the_table():
    noisy = setting("late", "skew", 4.25, -12.0)
    noisy["metrics"]["fd"]["caveats"] = {"the images are still noise": 2}
    results = RESULTS | {"settings": [*RESULTS["settings"][:2], noisy], "metrics": ["fd"]}
    lines = table_of(results, "fd", with_costs=False).splitlines()
    assert lines[2:] == ["| fedavg | 16.2 ± 0.5 | 4.00 ± 0.50 |", "| late | 4.25 ± 0.50 (−12.0 [−13.0, −11.0]) † | – |"]
    note = "† The images are still noise: late (skew: 2 of 3 seeds)."
    assert caveat_note(results, ["fd"]) == note
    assert f"\n\n{note}\n\n" in page(results | {"title": "t", "cells": [], "measured": {}})
    assert caveat_note(RESULTS, ["fd"]) == ""


def test_other_rows_may_be_compared_with_too():
    sentences = sentences_of(RESULTS | {"also_against": ["worse"]}, "fd")
    assert len(sentences) == 6
    assert sentences[4].startswith(
        "No difference to worse is shown, because the interval contains zero: late (skew, iid)"
    )


def test_a_pair_of_rows_that_are_compared_both_ways_counts_once():
    """Five differences, of which late - fedavg and fedavg - late are one: 4 * 0.05 = 0.2."""
    both = setting("fedavg", "skew", 16.25)
    both["metrics"]["fd"]["differences"] = {"late": {"mean": 12.0, "low": 11.0, "high": 13.0, "n": 3}}
    worse = setting("worse", "skew", 20.0, 3.75)
    worse["metrics"]["fd"]["differences"]["late"] = {"mean": 15.75, "low": 14.0, "high": 17.5, "n": 3}
    settings = [both, *RESULTS["settings"][1:4], worse]
    sentences = sentences_of(RESULTS | {"settings": settings, "also_against": ["late"]}, "fd")
    assert sentences[-1] == "If no row differed, 0.2 of these 4 intervals would exclude zero by chance."


def test_an_interval_that_does_not_survive_the_number_of_comparisons_is_named():
    """Of three, the weakest has t = 4.303 * 1.1 with 2 degrees of freedom, p = 0.042: above 0.05 / 2."""
    weak = setting("weak", "skew", 15.15, -1.1)
    sentences = sentences_of(RESULTS | {"settings": [*RESULTS["settings"][:4], weak]}, "fd")
    assert (
        "With Holm's correction for the 3 differences to fedavg, 1 of the 2 shown remain; these do not: weak (skew)."
        in sentences
    )


def test_a_control_without_a_complete_cell_is_named():
    control = {**setting("control", "skew", 0.0), "metrics": {}, "n": 0}
    results = RESULTS | {"settings": [*RESULTS["settings"], control], "also_against": ["control"]}
    assert "No statement against control, because it has no complete cell." in sentences_of(results, "fd")


def test_equal_values_with_every_seed_are_called_equal():
    same = setting("same", "skew", 16.25, 0.0)
    same["metrics"]["fd"]["differences"]["fedavg"] |= {"low": 0.0, "high": 0.0}
    assert sentences_of(RESULTS | {"settings": [RESULTS["settings"][0], same]}, "fd") == [
        "fd is that of fedavg, with every seed: same (skew)."
    ]


def test_the_lines_of_a_swept_reference_are_compared_with_one_of_them():
    more = setting("fedavg", "skew", 12.0) | {"label": "fedavg, local-steps = 80"}
    more["metrics"]["fd"]["differences"] = {"local-steps = 40": {"mean": -4.25, "low": -5.25, "high": -3.25, "n": 3}}
    sweep = {"key": "local-steps", "values": [40, 80], "reference": 40}
    results = RESULTS | {"settings": [RESULTS["settings"][0], more], "grid": {"sweep": sweep}}
    assert "| 12.0 ± 0.5 (−4.25 [−5.25, −3.25]) |" in table_of(results, "fd", with_costs=False)
    assert sentences_of(results, "fd") == [
        "fd is lower (better) than that of local-steps = 40, and the interval excludes zero: "
        "fedavg, local-steps = 80 (skew)."
    ]
    assert cost_note(results).startswith("Reference: fedavg (for its own lines: local-steps = 40). Seeds:")


def test_lost_seeds_allow_no_statement_and_a_cost_off_the_budget_is_named():
    lost = setting("lost", "skew", 4.0, -12.0, seeds=2)
    cheap = setting("cheap", "skew", 4.0, -12.0, steps=240.0)
    results = RESULTS | {"settings": [RESULTS["settings"][0], lost, cheap]}
    assert sentences_of(results, "fd") == [
        "fd is lower (better) than that of fedavg, and the interval excludes zero: cheap (skew, at 38% of the budget).",
        "No statement against fedavg, because there are fewer than 3 seeds, or not all have the metric: lost (skew).",
    ]
    assert cost_note(results).endswith("Not within 2 % of it: cheap (skew: 38%).")
    assert cost_note(results | {"match": "rounds"}).endswith("Gradient steps of a run: 240–640.")
    one = RESULTS | {"seeds": [0], "settings": [setting("late", "skew", 4.0, -12.0, seeds=1)]}
    (sentence,) = sentences_of(one, "fd")
    assert sentence.startswith("No statement against fedavg, because")
    assert sentence.endswith(": all rows.")


@pytest.mark.parametrize(
    ("starts", "text"),
    [
        ([("a", True), ("b", True)], "From commit a, b."),
        ([("a", True), ("b", False)], "From commit a, b (with local changes)."),
        ([("a", True), (None, True)], "From commit a and an unknown commit."),
        ([(None, True)], "From an unknown commit."),
    ],
)
def test_cells_without_git_are_not_cells_with_local_changes(starts, text):
    cells = [{"status": "completed", "git_commits": [commit], "git_clean": clean} for commit, clean in starts]
    commits = [commit for commit, _ in starts if commit]
    assert origin_of({"name": "a", "sessions": [], "cells": cells, "commits": commits}, "results").startswith(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3.14159, "3.14"),
        (0.0123456, "0.0123"),
        (1234.5, "1,230"),
        (99.96, "100"),
        (0.0, "0.00"),
        (1e-9, "1.00e-09"),
        (None, "not defined"),
    ],
)
def test_numbers_have_three_significant_digits(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("fedddpm compare /home/me/a.toml --out /tmp/x", "fedddpm compare a.toml --out x"),
        ('dataset="path:/data/mnist"', 'dataset="path:mnist"'),
        ("~/runs/a.log: No such file", "a.log: No such file"),
        ("path:/home/me/my sets, old/mnist", "path:mnist"),
        ("/home/me/my sets/", "my sets"),
        ("path:file:///data/mnist", "path:mnist"),
        ("see file://host/home/me/a.log", "see a.log"),
        (
            "fedddpm compare '/home/me/my grids/a.toml' -c 'dataset=\"path:/my data/b c\"'",
            "fedddpm compare 'a.toml' -c 'dataset=\"path:b c\"'",
        ),
        ("/home/me/a: not found, /tmp/b", "a: not found, b"),
        ("/", "/"),
        ("killed: pid 7 on my-host.lan; see log.txt", "killed: pid 7; see log.txt"),
        (
            "conf/compare/a.toml, 3 MB/s, https://arxiv.org/abs/1",
            "conf/compare/a.toml, 3 MB/s, https://arxiv.org/abs/1",
        ),
    ],
)
def test_absolute_paths_and_hosts_are_not_published(text, left):
    assert without_places({"a": [text]}) == {"a": [left]}
