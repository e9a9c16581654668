# Every target first creates a virtual environment in .venv, if there is none.
VENV ?= .venv
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin

.PHONY: demo test check long lint audit bench mutants results-table docs tour trackers

demo: $(VENV)/.installed  ## FedDDPM on the embedded digits: about four minutes on 2 CPU cores
	$(BIN)/fedddpm run

test: $(VENV)/.installed lint  ## lint, type checks and tests, on all cores
	$(BIN)/python -m pytest -n auto

check: test  ## all that `test` runs, and the slow tests
	$(BIN)/python -m pytest -m "slow and not long" -n 2 --dist loadgroup

long: $(VENV)/.installed  ## slow tests that do not fit into the 25 minutes of CI
	$(BIN)/python -m pytest -m long

trackers: $(VENV)/.installed  ## the tests of all trackers' libraries, which it installs: about two minutes
	$(BIN)/pip install --quiet -e ".[tensorboard,wandb,mlflow,trackio]"
	$(BIN)/python -m pytest -m "slow or not slow" tests/tracking

bench: $(VENV)/.installed  ## every benchmark in its short form; docs/performance.md has the results of the long form
	for name in transport deployment train_step allocator sampling federation_overhead scale reliability secure_sum; do \
		$(BIN)/python -m benchmarks.$$name --short || exit 1; \
	done

results-table: $(VENV)/.installed  ## the tables of the README and of docs/which-algorithm.md, from results/*.json
	$(BIN)/python -m fedddpm_app.compare.publish README.md results
	$(BIN)/python -m website.choosing docs/which-algorithm.md results

docs: $(VENV)/.installed  ## the documentation site, into site/; every warning, such as a dead link, is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

tour: $(VENV)/.installed  ## run examples/tour.ipynb, and store its outputs in it
	$(BIN)/python -m website.tour

mutants: $(VENV)/.installed  ## mutation testing of the numerics: about 40 minutes; tests/mutants.json has the verdicts
	$(BIN)/python -m tests.mutation run --label now --jobs 2
	$(BIN)/python -m tests.mutation report

lint: $(VENV)/.installed  ## format, style, security rules (ruff S), types, containers, scripts, secrets in files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/shellcheck docker/*.sh .ci/*.sh
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker/*.yml docker/*/*.yml
	git ls-files -z | xargs -0 $(BIN)/detect-secrets-hook --exclude-files '^results/|\.ipynb$$' --exclude-lines 'def test_'

audit: lint  ## the security rules of `lint`, and known faults of the dependencies, where their database can be reached
	.ci/audit.sh $(BIN)

# torch is installed first, so that another package cannot install a different build of it.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet -e ".[dev]"
	touch $@
