# make demo        install, draw the sample, train from scratch, answer a query
# make test        install and run every test
# make test-fast   the tests that take seconds, in under 2 minutes
# make campaign    damage files, kill runs, fill disks: 2,000 cases, half an hour
# make lint        ruff: rules and format; import-linter: direction of imports
# make docs        write docs/flags.md from the scripts' arguments
# make tour        run docs/tour.ipynb and write its outputs, in under a minute

PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
# one test process per core, each with one thread: more would wait for each other;
# a file's tests stay in one process, which sets up its fixtures once
PYTEST = OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n auto --dist loadfile --no-loadscope-reorder
DEMO = sample_uncropped_resnet18_1_40

.PHONY: demo test test-fast campaign lint docs tour
.SILENT: demo

demo: $(VENV)/.installed
	$(RUN) data_utils.py --data_name sample --image_size 64
	$(RUN) train.py --data_name sample --weights none --image_size 64 \
		--num_epochs 8 --recalls 1,2,4,8 --false_match_rate 0.05 \
		--overwrite
	$(RUN) inference.py --data_base $(DEMO)_data_base.pth \
		--query_img_name data/sample/test/figure_41/figure_41_01.png
	$(RUN) benchmarks/demo.py results/$(DEMO)
	echo "contact sheet        results/figure_41_01/contact_sheet.png"

test: $(VENV)/.installed
	$(PYTEST) tests

test-fast: $(VENV)/.installed
	$(PYTEST) -m "not slow" tests

campaign: $(VENV)/.installed
	PYTHONPATH=tests $(RUN) -m campaign

lint: $(VENV)/.installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(VENV)/bin/lint-imports --no-logo --no-cache

docs: $(VENV)/.installed
	$(RUN) docs/make_flags.py

tour: $(VENV)/.installed
	$(RUN) docs/make_tour.py

$(VENV)/.installed: pyproject.toml requirements.txt
	$(PYTHON) -m venv "$(VENV)"
	$(RUN) -m pip install -q -e '.[test]'
	touch $@
