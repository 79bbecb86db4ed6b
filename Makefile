# Two commands matter: `make book` and `make test`. Each sets up what it needs, in .venv and nowhere else: the book is built
# without PyTorch, everything else completes the same environment.

# Tests are of the whole book, whatever a class gets.
ifneq ($(filter test,$(MAKECMDGOALS)),)
override SOLUTIONS :=
MAKEOVERRIDES := $(filter-out SOLUTIONS=%,$(MAKEOVERRIDES))
endif
# A user's settings of pip and Python must not lead elsewhere than into .venv; mirrors and proxies stay as they are.
export PIP_USER := 0
# With glibc: freed memory is kept, or convolutions in double precision spend half their time on getting their buffers again.
export MALLOC_MMAP_THRESHOLD_ := 67108864
export MALLOC_TRIM_THRESHOLD_ := 134217728
unexport PIP_TARGET PIP_PREFIX PIP_ROOT PIP_CONSTRAINT PIP_NO_DEPS PIP_DRY_RUN PYTHONHOME PYTHONOPTIMIZE

VENV    := .venv
READING := $(VENV)/.reading
READY   := $(VENV)/.ready
INSTALL := $(if $(shell command -v uv 2>/dev/null),uv pip install --python $(VENV)/bin/python,\
             $(VENV)/bin/python -m pip install --disable-pip-version-check -q)
# Where the book is built: SOLUTIONS=no, for a class, leaves out the solutions of the exercises and goes beside it.
OUTPUT := $(if $(filter no,$(SOLUTIONS)),_build/without-solutions/,)
SITE   := $(OUTPUT)_build/html
BUILT  := $(OUTPUT)_build/built
# Readers' copies of the chapters, which stay when everything else is made anew.
READERS := notebooks$(if $(filter no,$(SOLUTIONS)),-without-solutions,)
CONVERT := $(VENV)/bin/python scripts/reader.py$(if $(filter no,$(SOLUTIONS)), --without-solutions,)
BUNDLE := walk-through-deep-transfer-learning
export SOLUTIONS
# Everything the built pages depend on: the book, the library (API pages), stored results, the configuration.
SOURCES := _config.yml data/datasets.toml $(wildcard scripts/*.py) $(shell find book src -type f ! -path '*/.*' ! -path '*/__pycache__/*' ! -path '*.egg-info/*' 2>/dev/null; \
           find data/results -name '*.json' 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help book offline install test reader lab notebooks bench lint links clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

book: $(BUILT)  ## build the book from the stored outputs, warnings as errors; SOLUTIONS=no leaves out the solutions
	@echo "The book is built. Open $(CURDIR)/$(SITE)/index.html"

# From nothing each time: Sphinx repeats no warning of a page that it finds unchanged, and keeps pages that are gone.
$(BUILT): $(READING) $(SOURCES)
	@rm -rf $@ $(SITE) $(OUTPUT)_build/.doctrees
	@mkdir -p $(@D)
	$(VENV)/bin/jb build book --config _config.yml --toc "$(CURDIR)/book/_toc.yml" --path-output $(or $(OUTPUT),.) -n -W --keep-going
	@$(CONVERT) --into $(SITE)/_sources --replace  # what the pages offer for download
	@touch $@

offline: $(BUILT)  ## the built book as one file that needs no network: unpack it and open index.html
	@rm -rf $(OUTPUT)_build/$(BUNDLE) && cp -r $(SITE) $(OUTPUT)_build/$(BUNDLE)
	@cd $(OUTPUT)_build && "$(CURDIR)/$(VENV)/bin/python" -m zipfile -c $(BUNDLE).zip $(BUNDLE)/ && rm -r $(BUNDLE)
	@echo "Made $(CURDIR)/$(OUTPUT)_build/$(BUNDLE).zip"

install: $(READY)  ## complete .venv, and nothing else

# The book first: where nothing is installed yet, it is built from what reading needs alone.
# Two workers with one thread each: numbers are compared under the thread count that stored them, and two cores are full.
test: $(BUILT) $(READY)  ## check everything: library, notebooks (executed and compared), built site in a browser
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest tests book --nbval --nbval-current-env -n 2 --dist loadfile $(ARGS)

reader: $(READING)  ## the chapters as notebooks to read, run and change, in notebooks/; changed ones are kept
	@$(CONVERT) --into $(READERS)

# Trusted, for they are the book's own: else JupyterLab shows the figures with sliders without their sliders. It asks nobody
# about news (scripts/jupyterlab), and looks for no language servers, of which it would list each that is missing.
lab: $(READY) reader  ## open these notebooks in JupyterLab
	@find $(READERS) -name '*.ipynb' ! -path '*/.*' -exec $(VENV)/bin/jupyter trust {} + >/dev/null
	$(VENV)/bin/jupyter lab --notebook-dir=$(READERS) --LabApp.app_settings_dir="$(CURDIR)/scripts/jupyterlab" --LanguageServerManager.autodetect=False

notebooks: $(READY)  ## execute notebooks and store their outputs: all, or ONLY=book/part2/mmd.ipynb
	$(VENV)/bin/python scripts/notebooks.py $(ONLY)

bench: $(READY)  ## measure layers and losses against plain baselines
	$(VENV)/bin/python -m benchmarks

lint: $(READY)  ## style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

links: $(READING)  ## follow every link that leads out of the book
	$(VENV)/bin/jb build book --config _config.yml --toc "$(CURDIR)/book/_toc.yml" --path-output _build/links --builder linkcheck -n

clean:  ## remove the built book and tool caches; keep .venv, readers' notebooks and downloaded data
	rm -rf _build .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find book src tests benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} +

# Both stages are renewed whenever the pins or the package's metadata change. The names of the first are the extra `book` of
# pyproject.toml, the versions of both are the pins.
$(READING): requirements.txt pyproject.toml
	@echo "Setting up $(VENV) for the book: a minute or two and about 300 MB the first time."
	@if [ -x $(VENV)/bin/python ]; then :; elif command -v uv >/dev/null; then \
	  uv venv --python '>=3.11,<3.14' $(VENV); \
	else \
	  for candidate in $(PYTHON) python3.13 python3.12 python3.11 python3 python; do \
	    $$candidate -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && found=$$candidate && break; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "Python 3.11, 3.12 or 3.13 with venv is needed (on Debian and Ubuntu: apt install python3-venv), or uv." >&2; \
	    echo "If it is installed under another name: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; \
	    exit 1; \
	  fi; \
	  $$found -m venv $(VENV); \
	fi
	$(INSTALL) -c requirements.txt $$($(VENV)/bin/python -c 'import tomllib; \
	  print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["book"])')
	$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

$(READY): $(READING)
	@echo "Completing $(VENV): a few minutes and about 7 GB the first time."
	$(INSTALL) -r requirements.txt
	@touch $@
