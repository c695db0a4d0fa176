# Works from a fresh clone with python3 (3.11 or newer), pip and make; `make` alone lists the targets.

PYTHON = python3
VENV   = .venv
BIN    = $(VENV)/bin
READY  = $(VENV)/.installed
TYPES  = $(VENV)/types
CONSTRAINTS = constraints.txt

.PHONY: help install demo test test-all test-slow lint format results default-model clean

help:
	@echo "make install        create .venv with the tested versions"
	@echo "make demo           segment a picture into classes whose masks the model never saw"
	@echo "make test           fast tests"
	@echo "make test-all       all tests but the slow ones"
	@echo "make test-slow      the tests that take minutes"
	@echo "make lint           style and types"
	@echo "make format         rewrite the code in the project's style"
	@echo "make results        pretrain a CLIP, compare the methods on it, in 70 minutes on 2 cores: docs/results.md"
	@echo "make default-model  train the embedded default model anew, on the same CLIP"
	@echo "make clean          remove the environment and everything built"

install: $(READY)

demo: $(READY)
	$(BIN)/zegclip demo

test: $(READY)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 -m "not slow and not thorough"

test-all: $(READY)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 -m "not slow"

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

# The import package zegclip.modeling lives in the folder modeling/ (package_dir in setup.cfg), which
# mypy cannot know. It is shown the installed layout instead: a folder of links, made afresh each time.
lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf $(TYPES) && mkdir -p $(TYPES)/zegclip
	@ln -s "$(CURDIR)"/zegclip/* "$(CURDIR)"/modeling "$(CURDIR)"/processing "$(CURDIR)"/picture_world $(TYPES)/zegclip/
	@ln -s "$(CURDIR)"/train.py "$(CURDIR)"/eval.py $(TYPES)/
	cd $(TYPES) && ../bin/mypy --config-file "$(CURDIR)/pyproject.toml" --cache-dir "$(CURDIR)/.mypy_cache" \
		-p zegclip -m train -m eval

format: $(READY)
	$(BIN)/ruff check --fix --exit-zero .
	$(BIN)/ruff format .

# Renamed at its end: an interrupted pretraining is begun anew.
outputs/clips/0: | $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m zegclip.picture_world.pretrain --output $@.unfinished
	mv $@.unfinished $@

results: outputs/clips/0
	$(BIN)/python benchmarks/picture_world.py configs/studies/main.yaml --clips outputs/clips/0 \
		--eval_split test --use_cpu --jobs 2 --runs plain maskclip sclip clearclip naclip naclip_refined \
		similarity zegclip spt_seg ldvc recipe

default-model: outputs/clips/0
	$(BIN)/python train.py configs/recipe_picture_world_inductive.yaml --model outputs/clips/0 \
		--eval_split test --output_dir outputs/default_model --use_cpu
	rm -rf zegclip/default_model
	$(BIN)/zegclip bundle outputs/default_model zegclip/default_model

clean:
	rm -rf $(VENV) build dist zegclip.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Redone only when one of these files changes. The mark is written last, so an interrupted
# installation is taken up again.
$(READY): setup.cfg pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "zegclip needs Python 3.11 or newer as '$(PYTHON)'; another one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "'$(PYTHON)' comes without venv; install it first (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install 'pip>=23.1'
	$(BIN)/python -m pip install -c $(CONSTRAINTS) -e '.[test,lint]'
	@touch $@
