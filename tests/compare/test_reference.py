"""The reference of a sweep: one line per value, and one floor."""

from fedddpm_app.compare.reference import compared_to, floor_of, is_swept, reference_mean


def setting(row, value, metrics, condition="iid"):
    return {"row": row, "sweep": {"num-clients": value} if value else {}, "condition": condition, "metrics": metrics}


def test_a_swept_reference_has_one_floor_and_a_mean_per_value():
    measured = {"fd": {"mean": 3.0, "floor": 1.5}}
    settings = [setting("fedavg", value, measured) for value in (2, 5)]
    settings += [setting("centralized", None, measured), setting("fedavg", 2, {}, condition="skew")]
    results = {"reference": "fedavg", "grid": {"sweep": {"key": "num-clients"}}, "settings": settings}
    assert is_swept(results)
    assert compared_to(results) == "fedavg with the same num-clients"
    assert reference_mean(results, "fd", "iid") is None
    assert floor_of(results, "fd", "iid") == 1.5
    assert floor_of(results, "fd", "skew") is None
    results["reference"] = "centralized"
    assert not is_swept(results)
    assert compared_to(results) == "centralized"
    assert reference_mean(results, "fd", "iid") == 3.0
