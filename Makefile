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
	@.venv/bin/biobert-cnn run $(CONFIG) $(ARGS)

test: setup
	@.venv/bin/python -m pytest $(SIDE_BY_SIDE) $(ARGS)

# Lint, types and the unit tests: no model server, no Beam run.
check: setup
	@.venv/bin/ruff check . && .venv/bin/ruff format --check -q . && .venv/bin/mypy
	@.venv/bin/python -m pytest $(SIDE_BY_SIDE) -m "not slow" $(ARGS)

# A month of daily retraining with faults and kills, in about an hour: `make soak ARGS="--days 6 --kills 4"` is shorter.
soak: setup
	@.venv/bin/python tests/e2e/soak.py $(ARGS)

# Resolve the environment anew, for all supported Pythons at once; hashes, no addresses.
lock: setup
	@.tools/venv/bin/uv pip compile --quiet --universal --generate-hashes --no-header --python-version 3.11 \
	  --extra pipeline --extra kfp --extra dev pyproject.toml -o deploy/bootstrap/requirements.txt
