# make demo, make test: each sets up .venv itself, with Python 3.11 or newer (PYTHON=python3.12 make demo).
PYTHON ?= python3
JOBS ?= $(shell getconf _NPROCESSORS_ONLN)
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test check docs test-slurm

demo: $(STAMP)
	$(BIN)/snakemake --cores $(JOBS) --resources gpu_slots=$(JOBS)
	@echo
	@echo "Report:     file://$(CURDIR)/results/demo/report.html"
	@echo "All sweeps: file://$(CURDIR)/results/index.html"

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The demo through profiles/slurm, on a Slurm of one node that is set up for it (Debian: slurm-wlm and munge; as root).
# The plugin has a folder of its own: where Slurm's programs are but no controller answers, it delays every Snakemake.
test-slurm: $(STAMP)
	$(BIN)/python -m pip install --quiet --upgrade --no-deps --target .venv/slurm --constraint constraints.txt \
	  snakemake-executor-plugin-slurm snakemake-executor-plugin-slurm-jobstep
	PYTHONPATH=$(CURDIR)/.venv/slurm $(BIN)/python tests/slurm/run.py

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

# Files that are generated from the models.
docs: $(STAMP)
	$(BIN)/python -m gradlab.document

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(sys.version_info < (3, 11) and \
	  f"Python: expected 3.11 or newer; found {v}. Name another: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
