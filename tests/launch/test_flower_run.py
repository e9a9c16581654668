"""What a run's processes inherit."""

from pathlib import Path

from fedddpm_app.launch.flower_run import FlowerRun


def test_a_run_does_not_inherit_what_a_notebook_sets_for_its_own_output(monkeypatch):
    """With colours, the status that Flower prints as JSON could not be read."""
    for name, value in (("FORCE_COLOR", "1"), ("CLICOLOR_FORCE", "1"), ("MPLBACKEND", "module://inline")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_HOME", "/data/hf")
    environment = FlowerRun(Path(), {}, {}).environment
    assert not {"FORCE_COLOR", "CLICOLOR_FORCE", "MPLBACKEND"} & environment.keys()
    assert environment["HF_HOME"] == "/data/hf"
