.DEFAULT_GOAL := help
.PHONY: help demo rehearsal test check soak format constraints

# The first Python of at least 3.11 that starts; constraints.txt is made for 3.11. Another one: make PYTHON=/path/to/python
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo "$$p" && break; done)
PY := .venv/bin/python
READY := .venv/.ready

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY)  ## degrade, restore and score real photos: outputs/demo/
	$(PY) scripts/evaluate.py --suite demo output_dir=outputs/demo

rehearsal: $(READY)  ## before renting a cluster: the paper's model with random weights through every script
	$(PY) benchmarks/rehearsal.py

# Three files at a time on two cores: many tests wait for processes that they started.
test: $(READY)  ## the test suite (10 minutes on two cores)
	$(PY) -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder -m "not soak"

check: $(READY)  ## ruff, types and the fast tests: before every commit
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	.venv/bin/lint-imports
	$(PY) -m mypy --strict diffrestorer scripts
	$(PY) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not soak"

soak: $(READY)  ## its long tests and the further members of every kind (hours)
	$(PY) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m soak

format: $(READY)  ## let ruff fix what it can
	$(PY) -m ruff check --fix
	$(PY) -m ruff format

constraints: $(READY)  ## resolve pyproject.toml anew into constraints.txt
	.venv/bin/uv pip compile pyproject.toml --all-extras --upgrade --python-version 3.11 \
		--python-platform x86_64-manylinux_2_28 --no-header --no-annotate --no-emit-index-url -q -o constraints.txt

# One environment for everything (about 7 GB), made again when a dependency changes. Bytecode is compiled once here:
# reading torch, diffusers and transformers without it takes every process that starts twelve seconds more.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "diffrestorer needs Python 3.11 or newer; say where: make PYTHON=/path/to/python" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is no Python of at least 3.11" >&2; exit 1; }
	test -x .venv/bin/uv || { "$(PYTHON)" -m venv .venv && $(PY) -m pip install -q -c constraints.txt uv; }
	.venv/bin/uv pip install --compile-bytecode --python $(PY) -e ".[eval,train,lora,app,onnx,heic,dev]" -c constraints.txt
	@touch $@
