# make report   execute the workbook on CASE (default: the bundled case) and write an HTML report under reports/
# make test     style check and tests; with F5LAB_LONG_TESTS=1 also on a Ray cluster that loses a node
# make test-browser   every notebook in JupyterLab and every page of a report, in Chromium (about 20 minutes)
# make lab      JupyterLab on notebooks/
# make bench    the measured figures again (ONLY=speed: one script)
# make clean    remove the environment and caches; reports stay
#
# Each target installs what it needs into .venv, once. ARGS is passed on: make report ARGS="--only 01 --device cpu"

VENV  := .venv
PY    := $(VENV)/bin/python
STAMP := $(VENV)/.installed
CASE  ?=
ARGS  ?=

.PHONY: report test test-browser screenshots lab bench clean install ffmpeg chromium
.DEFAULT_GOAL := report

report: $(STAMP) | ffmpeg
	$(VENV)/bin/f5lab run $(CASE) $(ARGS)

test: $(STAMP) | ffmpeg chromium
	$(VENV)/bin/ruff check .
	$(PY) -m pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

test-browser: $(STAMP) | ffmpeg chromium
	F5LAB_BROWSER=all $(PY) -m pytest -m browser $(ARGS)

# RUN=reports/ptbr/…: pictures of a run's best pages and of the listening panel, for README
screenshots: $(STAMP) | chromium
	$(PY) tests/take_screenshots.py $(RUN)

lab: $(STAMP) | ffmpeg
	$(VENV)/bin/jupyter lab --notebook-dir=. --LabApp.default_url=/lab/tree/notebooks $(ARGS)

BENCHES := static hostile speed scaling calibration
bench: $(STAMP) | ffmpeg
	@set -e; for name in $(or $(ONLY),$(BENCHES)); do \
	  echo "benchmarks/$$name.py"; $(PY) "benchmarks/$$name.py" $(ARGS); \
	done

install: $(STAMP)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
	find f5lab tests notebooks -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

# torchcodec and pydub load FFmpeg's shared libraries when audio is read; better to know now than an hour in.
ffmpeg:
	@have() { \
	  command -v ffmpeg >/dev/null 2>&1 || return 1; \
	  { ldconfig -p 2>/dev/null || /sbin/ldconfig -p 2>/dev/null; } | grep -q 'libavcodec\.so' && return 0; \
	  for folder in "$$(dirname "$$(command -v ffmpeg)")/../lib" "$$CONDA_PREFIX/lib" /opt/homebrew/lib /usr/local/lib \
	    $$(echo "$$LD_LIBRARY_PATH" | tr ':' ' '); do \
	    ls "$$folder"/libavcodec.* >/dev/null 2>&1 && return 0; \
	  done; return 1; }; \
	have && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
	  echo "FFmpeg is missing: installing it with apt-get"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq ffmpeg && have && exit 0; \
	fi; \
	echo "FFmpeg and its shared libraries are missing; install them with: sudo apt-get install ffmpeg, or: conda install -c conda-forge ffmpeg" >&2; \
	exit 1

# The browser tests open reports in a real browser; without one they are skipped.
chromium:
	@have() { command -v chromium || command -v chromium-browser || command -v google-chrome; }; \
	have >/dev/null 2>&1 && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
	  echo "Chromium is missing: installing it with apt-get"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium && have >/dev/null 2>&1 && exit 0; \
	fi; \
	echo "Chromium is missing: the browser tests are skipped; to have them: sudo apt-get install chromium" >&2

# Compiled as they are installed: each notebook's kernel imports five thousand modules, which halves the time that it takes.
$(STAMP): requirements.lock pyproject.toml | ffmpeg
	@set -e; \
	if [ ! -x $(PY) ]; then \
	  chosen=; for python in $(PYTHON) python3.11 python3.12 python3.10 python3 python; do \
	    command -v "$$python" >/dev/null 2>&1 || continue; \
	    "$$python" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null || continue; \
	    chosen=$$python; break; \
	  done; \
	  if [ -n "$$chosen" ]; then "$$chosen" -m venv $(VENV); \
	  elif command -v uv >/dev/null 2>&1 && uv venv --quiet --seed --python '>=3.10,<3.13' $(VENV); then :; \
	  else echo "No Python 3.10, 3.11 or 3.12 with venv was found; install one (python3.11 python3.11-venv), or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; fi; \
	fi; \
	uv=$$(command -v uv || true); \
	if [ -z "$$uv" ] || ! "$$uv" --version >/dev/null 2>&1; then \
	  $(PY) -m pip install --quiet --disable-pip-version-check uv; uv=$(VENV)/bin/uv; \
	fi; \
	"$$uv" pip install --python $(PY) --require-hashes --compile-bytecode -r requirements.lock; \
	"$$uv" pip install --python $(PY) --compile-bytecode --no-deps -e .; \
	touch $@
