# Two commands: `make run` and `make test`. Each sets everything up first (.venv, see deploy/bootstrap); a second
# set-up takes under two seconds.
CONFIG ?= pipeline/configs/default.toml
ARGS ?=
# Two test files at a time; `SIDE_BY_SIDE=` runs them one after the other.
SIDE_BY_SIDE ?= -n 2 --dist loadfile --no-loadscope-reorder
export PYTHONSAFEPATH = 1
export TF_CPP_MIN_LOG_LEVEL = 2

.PHONY: setup run test check soak lock
setup:
	@bash deploy/bootstrap/bootstrap.sh

run: setup
	@.venv/bin/biobert-cnn run "$(CONFIG)" $(ARGS)

test: setup
	@.venv/bin/python -m pytest $(SIDE_BY_SIDE) $(ARGS)

# Lint, types and the unit tests: no model server, no Beam run, no whole training run.
check: setup
	@.venv/bin/ruff check . && .venv/bin/ruff format --check -q . && .venv/bin/mypy
	@.venv/bin/python -m pytest $(SIDE_BY_SIDE) -m "not slow" $(ARGS)

# A month of daily retraining with faults and kills, in about an hour: `make soak ARGS="--days 6 --kills 4"` is shorter.
soak: setup
	@.venv/bin/python tests/e2e/soak.py $(ARGS)

# Resolve the environments anew, the images' from the first's versions; hashes, no addresses.
RESOLVE = .tools/venv/bin/uv pip compile --quiet --generate-hashes --no-header --python-version 3.11
IMAGE = $(RESOLVE) --python-platform x86_64-manylinux_2_40 -c deploy/bootstrap/requirements.txt
lock: setup
	@$(RESOLVE) --universal --extra pipeline --extra kfp --extra tracing --extra dev pyproject.toml \
	  -o deploy/bootstrap/requirements.txt
	@$(IMAGE) --extra pipeline --extra kfp --extra tracing pyproject.toml -o deploy/pipeline/requirements.txt
	@$(IMAGE) --extra pipeline --extra kfp --extra tracing --extra gpu pyproject.toml -o deploy/pipeline/requirements-gpu.txt
	@$(RESOLVE) --universal --extra airflow pyproject.toml -o deploy/airflow/requirements.txt
