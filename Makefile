# make demo: from nothing to a trained detector and its scores. make test: all tests.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
DEMO := demo

.PHONY: install demo test check bench same-loss clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[test]'
	touch $@

demo: $(STAMP)
	rm -rf $(DEMO)
	$(BIN)/featurestore synth $(DEMO)/data
	$(BIN)/featurestore build --config configs/demo.toml --metadata $(DEMO)/data/train_metadata.csv \
	    --audio $(DEMO)/data/train_audio --out $(DEMO)/features.zarr
	$(BIN)/trainer fit --features $(DEMO)/features.zarr --config configs/demo.toml \
	    --out $(DEMO)/runs/attention
	$(BIN)/trainer fit --features $(DEMO)/features.zarr --config configs/demo.toml \
	    --out $(DEMO)/runs/linear --set head.name=linear
	$(BIN)/trainer finetune --features $(DEMO)/features.zarr --init $(DEMO)/runs/attention \
	    --config configs/demo.toml --out $(DEMO)/runs/tuned
	$(BIN)/trainer calibrate $(DEMO)/runs/attention --no-call-minutes 1
	$(BIN)/trainer predict $(DEMO)/runs/attention --audio $(DEMO)/data/soundscapes \
	    --out $(DEMO)/submission.csv --png $(DEMO)/pictures --truth $(DEMO)/data/truth.csv \
	    --events csv --events raven --frames $(DEMO)/frames --overlap 0.5 --html $(DEMO)/heard
	$(BIN)/trainer export $(DEMO)/runs/attention --out $(DEMO)/model
	$(BIN)/featurestore report $(DEMO)/features.zarr --out $(DEMO)/data.html
	$(BIN)/trainer report $(DEMO)/runs/attention $(DEMO)/runs/linear $(DEMO)/runs/tuned \
	    --out $(DEMO)/runs.html
	@echo
	@$(BIN)/trainer score --events $(DEMO)/submission.events.csv --truth $(DEMO)/data/truth.csv \
	    --frames $(DEMO)/frames
	@echo
	@$(BIN)/trainer evaluate $(DEMO)/runs/attention $(DEMO)/runs/linear $(DEMO)/runs/tuned \
	    --audio $(DEMO)/data/soundscapes --truth $(DEMO)/data/truth.csv
	@echo
	@echo "Held-out recordings, and 5-second segments of soundscapes against their truth; 0.5 is chance."
	@echo "Open in a browser:"
	@echo "  $(DEMO)/data.html                    what is in the data, to look at and listen to"
	@echo "  $(DEMO)/runs.html                    the three runs: curves, species, mistakes"
	@echo "  $(DEMO)/heard/index.html             what was heard in the soundscapes, to be reviewed"
	@echo "Look at:"
	@echo "  $(DEMO)/pictures/synth_000.png       what was heard, and what the run makes of it"
	@echo "  $(DEMO)/submission.csv               a row per 5-second segment"
	@echo "  $(DEMO)/submission.raven.txt         events as a Raven selection table; .events.csv: the same as CSV"
	@echo "  $(DEMO)/model/README.md              the exported model's card; model_waveform.onnx runs without this project"
	@echo "  $(DEMO)/runs/attention/per_class.csv scores per species; metrics.jsonl: per epoch"
	@echo "  $(DEMO)/features.zarr                the store; $(BIN)/featurestore info $(DEMO)/features.zarr"

test: $(STAMP)
	$(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

# make bench ONLY=mel runs one section; see tests/benchmarks.
bench: $(STAMP)
	TQDM_DISABLE=1 $(BIN)/python tests/benchmarks/run.py $(if $(ONLY),--only $(ONLY))

# Trains the demo config at the parent commit and here; the losses must agree to the last digit.
same-loss: $(STAMP)
	$(BIN)/python tests/benchmarks/same_loss.py

clean:
	rm -rf $(VENV) $(DEMO) bench.json
