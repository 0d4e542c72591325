# `make demo` and `make test` set up their environment themselves.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
BASE   := .venv/base
# The real Letta server, its sources and a migrated database.
LETTA  := .venv/letta
LETTA_CACHE := .cache/letta
# The source distribution of arq: its tests are fetched, not kept here.
ARQ    := .cache/arq
# Number of processes for tests that are not marked serial.
JOBS   ?= 4
PYTEST := $(BIN)/python -m pytest
# Collecting all modules again for these few would take longer than some of them.
SERIAL  = $(shell grep -rl --include='test_*.py' 'mark\.serial' tests)
# Prints only failures: --quiet would hide the warnings that --strict counts.
# The variable silences a notice of the theme that does not concern a page.
MKDOCS := found=$$(NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict 2>&1
OR_SHOW := ) || { echo "$$found"; exit 1; }

# Some images switch it off. Then every process that a test starts would compile our modules anew,
# which is a third of its time.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup demo run test compose-test arq-test letta-env letta-test letta-managers letta-lock coverage check bench soak docs screenshots site lock format clean

help: ## List these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.ready ## Make the local environment (.venv); other targets do it when needed

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 5) and "Python 3.11.5 or newer is needed")'
	@echo "setting up $(VENV) (once; about a minute)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r constraints.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(VENV)/.ready ## Run webhooks and LLM requests end to end, with a report; KEEP=1 leaves its page open
	@$(BIN)/letta-workers demo $(if $(KEEP),--keep)

run: $(VENV)/.ready ## Run the workers against LETTA_REDIS_URL
	@$(BIN)/letta-workers run

test: $(VENV)/.ready ## Run all checks, arq's own tests, then all of ours
	@$(MAKE) --no-print-directory -j2 check $(BASE)/.ready arq-test
	@$(PYTEST) -q -n $(JOBS) --dist worksteal -m "not serial" $(COVER)
	@$(PYTEST) -q -m serial $(COVER) $(if $(COVER),--cov-append) $(SERIAL)

# Exits with 77 where it cannot run, and says what the machine lacks.
compose-test: $(VENV)/.ready ## Start compose/ in containers (root and podman), kill each of them, stop them; takes minutes
	@$(BIN)/python -m tests.containers

coverage: $(VENV)/.ready ## Run `make test` with a report of coverage; takes about half as long again
	@$(MAKE) --no-print-directory test COVER=--cov

# arq's tests sleep for 0.1 s and then look, so those that fail on a busy machine run once more.
ARQ_TEST := $(PYTEST) -q -rfE --tb=short -p tests.support.arq_suite -o timeout=10 -o cache_dir=.pytest_cache \
  -W 'ignore:Call to deprecated close:DeprecationWarning' --rootdir $(ARQ) \
  $(foreach name,worker jobs cron main,$(ARQ)/arq_tests/test_$(name).py)

arq-test: $(ARQ)/.ready ## Run arq's own tests on our worker; docs/arq.md lists what deviates
	@PYTHONPATH=. $(ARQ_TEST) || PYTHONPATH=. $(ARQ_TEST) --last-failed

# Without the sources beside the tests, `import arq` means the installed one.
$(ARQ)/.ready: constraints.txt $(VENV)/.ready
	@rm -rf $(ARQ); mkdir -p $(ARQ)
	@grep '^arq==' constraints.txt > $(ARQ)/requirement.txt
	@$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary arq \
	  --no-build-isolation --require-hashes -d $(ARQ) -r $(ARQ)/requirement.txt
	@tar -xzf $(ARQ)/arq-*.tar.gz -C $(ARQ) --strip-components 1
	@mv $(ARQ)/tests $(ARQ)/arq_tests; rm -r $(ARQ)/arq $(ARQ)/*.toml; touch $@

letta-env: $(LETTA)/.ready ## Install the real Letta server and migrate a database for it

letta-test: $(LETTA)/.ready ## Run the tests of the plug-in inside the real Letta server
	@nice $(LETTA)/bin/python -m pytest -q --confcutdir tests/letta -p no:warnings -o timeout=1800 tests/letta

letta-managers: $(LETTA)/.ready ## Audit the cache in Letta's own manager tests: LETTA_TESTS names their folder
	@nice $(LETTA)/bin/python -m tests.letta.managers $(or $(LETTA_TESTS),$(error LETTA_TESTS names the folder of tests of Letta 0.16.8))

# The migrations are in the source distribution only.
$(LETTA)/.ready: tests/letta/environment.txt $(VENV)/.ready
	@echo "setting up $(LETTA) (once; about three minutes)"
	@test -x $(LETTA)/bin/python || $(PYTHON) -m venv $(LETTA)
	@$(LETTA)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r $<
	@rm -rf $(LETTA_CACHE); mkdir -p $(LETTA_CACHE)/source
	@grep '^letta==' $< > $(LETTA_CACHE)/requirement.txt
	@$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary letta \
	  --no-build-isolation --require-hashes -d $(LETTA_CACHE) -r $(LETTA_CACHE)/requirement.txt
	@tar -xzf $(LETTA_CACHE)/letta-*.tar.gz -C $(LETTA_CACHE)/source --strip-components 1
	@$(LETTA)/bin/python -m tests.letta.postgres
	@touch $@

check: $(VENV)/.ready ## Check lint, format, types, import direction, generated docs, website
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy --no-error-summary
	@found=$$($(BIN)/lint-imports) || { echo "$$found"; exit 1; }
	@$(BIN)/python -m docs.generate --check
	@$(MKDOCS) --site-dir out/site-check $(OR_SHOW)

docs: $(VENV)/.ready ## Generate docs/cli.md and docs/settings.md
	@$(BIN)/python -m docs.generate

screenshots: $(VENV)/.ready ## Take docs/images from a fleet that works for MINUTES=12; needs Chromium
	@$(BIN)/python -m docs.screenshots --minutes $(or $(MINUTES),12)

site: $(VENV)/.ready ## Build the documentation as a website into out/site
	@$(MKDOCS) $(OR_SHOW)

# One line a package. `make lock` keeps the versions that are there and adds what is missing;
# `make lock UPGRADE=1` takes the newest. The oldest Python is the first that all have files for.
LOCK := $(VENV)/lock/bin/uv pip compile --quiet --universal --python-version 3.11.5 --generate-hashes \
  --no-config --no-header --no-annotate --no-emit-index-url
ONE_LINE := awk '/^\#/ {next} {sub(/^ +/, " ")} sub(/ *\\$$/, "") {printf "%s", $$0; next} {print}'

lock: ## Write constraints.txt, compose/requirements.txt and benchmarks/peers.txt anew, with hashes
	@test -x $(VENV)/lock/bin/uv || { $(PYTHON) -m venv $(VENV)/lock && \
	  $(VENV)/lock/bin/python -m pip install --quiet --disable-pip-version-check uv; }
	@mkdir -p out
	@$(LOCK) pyproject.toml --extra worker --extra dev --extra bench $(if $(UPGRADE),,-c constraints.txt) -o out/all.txt > /dev/null
	@{ sed -n '/^\#/p' constraints.txt; $(ONE_LINE) out/all.txt; } > out/constraints.txt
	@$(LOCK) pyproject.toml --extra worker --extra web -c out/constraints.txt -o out/worker.txt > /dev/null
	@{ sed -n '/^\#/p' compose/requirements.txt; $(ONE_LINE) out/worker.txt; } > out/requirements.txt
	@$(LOCK) benchmarks/peers.in $(if $(UPGRADE),,-c benchmarks/peers.txt) -o out/bench.txt > /dev/null
	@{ sed -n '/^\#/p' benchmarks/peers.txt; $(ONE_LINE) out/bench.txt; } > out/peers.txt
	@mv out/constraints.txt constraints.txt; mv out/requirements.txt compose/requirements.txt
	@mv out/peers.txt benchmarks/peers.txt

# Pinned as in the lock file of the server's own release, which its image is built from.
letta-lock: ## Write tests/letta/environment.txt anew, with hashes
	@mkdir -p out
	@$(VENV)/lock/bin/uv export --quiet --frozen --no-hashes --no-emit-project --no-config --extra postgres \
	  --extra redis --extra server --no-header --no-annotate --directory $(LETTA_CACHE)/source > out/image.txt
	@$(VENV)/lock/bin/uv pip compile --quiet --python-version 3.11 --python-platform linux --generate-hashes --no-config \
	  --no-header --no-annotate --no-emit-index-url tests/letta/environment.in -c out/image.txt -o out/letta.txt > /dev/null
	@{ sed -n '/^\#/p' tests/letta/environment.txt; $(ONE_LINE) out/letta.txt; } > out/environment.txt
	@mv out/environment.txt tests/letta/environment.txt

format: $(VENV)/.ready ## Format the code
	@$(BIN)/ruff check --quiet --fix . ; $(BIN)/ruff format --quiet .

bench: $(VENV)/.ready $(VENV)/peers/.ready ## Run the benchmarks: tables here, JSON in out/
	@for file in benchmarks/bench_*.py; do $(BIN)/python $$file || exit 1; done

# The peers of the queue need their own environment: their pins of redis-py contradict arq's.
$(VENV)/peers/.ready: benchmarks/peers.txt $(VENV)/.ready
	@echo "setting up $(VENV)/peers (once)"
	@$(PYTHON) -m venv $(VENV)/peers
	@$(VENV)/peers/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r benchmarks/peers.txt
	@touch $@

soak: $(VENV)/.ready ## Break the queue, the cache and the network at random: make soak SEED=7 MINUTES=10
	@SOAK_SEED=$(or $(SEED),1) SOAK_MINUTES=$(or $(MINUTES),5) $(PYTEST) -q -x tests/engine/test_chaos.py tests/engine/test_chaos_counts.py tests/app/test_chaos_sent.py
	@SOAK_SEED=$(or $(SEED),1) SOAK_FAULTS=$(shell expr $(or $(MINUTES),5) '*' 6) $(PYTEST) -q -s -x tests/engine/test_cluster_faults.py
	@SOAK_SEED=$(or $(SEED),1) SOAK_FAULTS=$(or $(MINUTES),5) $(PYTEST) -q -s -x tests/engine/test_sentinel_faults.py tests/engine/test_sentinel_tls.py
	@for place in --on-sentinel --on-cluster; do SOAK_SEED=$(or $(SEED),1) SOAK_MINUTES=1 $(PYTEST) -q -x $$place \
		tests/engine/test_chaos.py tests/engine/test_model.py tests/engine/test_states_walk.py || exit 1; done
	@FUZZ_S=$(shell expr $(or $(MINUTES),5) '*' 60) $(PYTEST) -q -s -p no:cacheprovider --timeout 0 tests/cache/test_connection_fuzz.py
	@FUZZ_S=$(shell expr $(or $(MINUTES),5) '*' 60) $(PYTEST) -q -s -p no:cacheprovider --timeout 0 tests/cache/test_messages_fuzz.py
	@FUZZ_S=$(shell expr $(or $(MINUTES),5) '*' 60) $(PYTEST) -q -s -p no:cacheprovider --timeout 0 tests/cache/test_partition_fuzz.py
	@DEATHS_S=60 FUZZ_SEED=$(SEED) $(PYTEST) -q -s -p no:cacheprovider --timeout 0 tests/cache/test_deaths.py
	@FUZZ_EXAMPLES=$(shell expr $(or $(MINUTES),5) '*' 200) $(PYTEST) -q --timeout 0 tests/engine/test_ticks.py tests/engine/test_whatever_is_raised.py tests/queue/test_rhythm.py
	@FUZZ_EXAMPLES=$(shell expr $(or $(MINUTES),5) '*' 40) $(PYTEST) -q --timeout 0 tests/llm/test_model.py tests/webhooks/test_limits_model.py
	@SOAK_SEED=$(or $(SEED),1) $(PYTEST) -q --timeout 1200 tests/app/test_side_by_side.py

# The base install without arq, as on a Letta server: with the redis-py of the workers, the oldest
# that is allowed, and with the newest that `make lock` found. Rebuilt when a source changes.
BASE_NAMES := annotated-types|anyio|certifi|cronsim|h11|hiredis|httpcore|httpx|idna|msgpack|msgspec|pydantic|pydantic-core
BASE_NAMES := $(BASE_NAMES)|pydantic-settings|pyjwt|python-dotenv|typing-extensions|typing-inspection

$(BASE)/.ready: pyproject.toml $(VENV)/.ready $(shell find hatch_build.py settings.py cache worker letta_redis -name '*.py' -o -name '*.lua' -o -name '*.html')
	@test -d $(BASE) || echo "setting up $(BASE) (once; later only our own wheel)"
	@rm -rf $(BASE)/dist
	@$(BIN)/python -m hatchling build -t wheel -d $(BASE)/dist > /dev/null
	@for redis in 'oldest constraints.txt' 'newest benchmarks/peers.txt'; do set -- $$redis; \
	  { grep -E '^($(BASE_NAMES))==' constraints.txt; grep '^redis==' $$2; } > $(BASE)/$$1.txt; \
	  install="$(BIN)/python -m pip --python $(BASE)/$$1/bin/python install --quiet --disable-pip-version-check --no-deps"; \
	  test -d $(BASE)/$$1 || { $(PYTHON) -m venv --without-pip $(BASE)/$$1 && \
	  $$install --require-hashes -r $(BASE)/$$1.txt || { rm -rf $(BASE)/$$1; exit 1; }; }; \
	  $$install --force-reinstall $(BASE)/dist/*.whl || exit 1; done
	@touch $@

clean: ## Remove the environment and everything generated
	@rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage out dist
