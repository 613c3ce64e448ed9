# make demo | make test | make help. Everything is set up in .venv and target/; a second run rebuilds nothing.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DOCS_VENV := .venv-docs
STAMPS := .stamps

RUST_SRC := $(shell find crates \( -name '*.rs' -o -name Cargo.toml -o -name '*.S' \)) Cargo.toml Cargo.lock
PY_SRC := $(shell find $(wildcard python tests benches examples tools) \( -name '*.py' -o -name '*.pyi' \)) pyproject.toml
# Tests of the crates need no Python; the bindings are tested from Python.
CRATES := --workspace --exclude pageone-bindings
# The tests in which the tracer dies at a chosen instant, which nothing that users get is able to.
ABANDONED := -p pagemem --features failpoints --test abandoned
# The build script of PyO3 asks this interpreter for its version.
export PYO3_PYTHON := $(abspath $(BIN)/python)
PYTEST_ARGS ?=
# Tests that run at once; mostly they wait. Those that set the whole machine keep apart (tests/conftest.py).
PYTEST_JOBS ?= 2
# In `make test` the Python tests alone show at once what they print (BESIDE is descriptor 9 then), and all else has what
# they and their native core leave of the processors.
ifdef BESIDE
SHOW := >&9 2>&1
AFTER := nice -n 19
unexport MAKEFLAGS MFLAGS BESIDE
endif

help: ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

demo: build ## set everything up and merge the memory of real processes
	$(BIN)/pageone demo $(DEMO_ARGS)

# All at once. What is not the Python tests is shown after them, each part in one piece; no failure hides another.
test: ## everything that must pass: lint, types, Rust tests, Python tests
	@mkdir -p $(STAMPS); failed=0; \
	$(MAKE) -j8 -k --output-sync=target --no-print-directory BESIDE=9 lint rust-test loom pytest \
	    9>&1 >$(STAMPS)/beside.log 2>&1 || failed=$$?; \
	cat $(STAMPS)/beside.log; \
	if test $$failed != 0; then echo "failed, see above:"; grep '\*\*\* \[' $(STAMPS)/beside.log; exit $$failed; fi
	@$(BIN)/python tools/count_tests.py $(STAMPS)/rust-test.log $(STAMPS)/pytest.xml

lint: $(STAMPS)/rustfmt $(STAMPS)/clippy $(STAMPS)/aarch64 $(STAMPS)/msrv $(STAMPS)/rustdoc $(STAMPS)/ruff $(STAMPS)/mypy ## formatters, linters and types, only where files have changed

build: $(STAMPS)/native ## the virtual environment and the native core

failpoints: $(STAMPS)/failpoints ## a second native core with failpoints, for tests of tests alone

wheel: build ## the wheel that users get, in dist/, which is installed elsewhere and tried
	rm -rf dist
	VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/maturin build --release -q --out dist
	PAGEONE_WHEEL=$$(echo dist/*.whl) $(BIN)/python -m pytest -q tests/house/test_wheel.py

rust-test: $(STAMPS)/toolchain ## the tests of the crates, and the examples in their documentation
	@if cargo nextest --version >/dev/null 2>&1; then \
	    $(AFTER) cargo nextest run $(CRATES) --no-tests=pass 2>&1 | tee $(STAMPS)/rust-test.log; \
	    $(AFTER) cargo nextest run $(ABANDONED) 2>&1 | tee -a $(STAMPS)/rust-test.log; \
	    $(AFTER) cargo test $(CRATES) --doc 2>&1 | tee -a $(STAMPS)/rust-test.log; \
	else \
	    $(AFTER) cargo test $(CRATES) 2>&1 | tee $(STAMPS)/rust-test.log; \
	    $(AFTER) cargo test $(ABANDONED) 2>&1 | tee -a $(STAMPS)/rust-test.log; \
	fi

# Seconds for each model and preemptions in it; `make soak` gives more of both.
loom: export LOOM_MAX_DURATION ?= 1
loom: export LOOM_MAX_PREEMPTIONS ?= 2
loom: $(STAMPS)/toolchain ## models of the tree: every interleaving of two threads on the real code, within a bound
	@RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom $(AFTER) \
	    cargo test -q -p sdtree --profile models --test loom -- --test-threads 1

crates: $(STAMPS)/msrv $(STAMPS)/rustdoc ## the crates that can be published, packed and built from their packages alone
	cargo package --allow-dirty -p keyhash -p sdtree

sanitize: ## the tests of the tree under the address and leak sanitizers (of the compiler that is there)
	RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address" CARGO_TARGET_DIR=target/asan cargo test -p sdtree \
	    --target $$(rustc -vV | sed -n 's/^host: //p') --lib --test sound --test keys --test objects --test replay --test linearizable

# As cargo-fuzz does, with what a stable toolchain has: the counters of edges and comparisons that libFuzzer asks for.
fuzz: export RUSTC_BOOTSTRAP := 1
fuzz: export RUSTFLAGS := --cfg fuzzing -Zsanitizer=address -Ccodegen-units=1 -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares
fuzz: ## the tree against a BTreeMap on inputs that a fuzzer makes, for FUZZ_SECONDS (60), under the address sanitizer
	@mkdir -p target/fuzz/corpus
	CARGO_TARGET_DIR=target/fuzz cargo run -q --release --manifest-path fuzz/Cargo.toml \
	    --target $$(rustc -vV | sed -n 's/^host: //p') -- target/fuzz/corpus fuzz/corpus/tree \
	    -max_total_time=$${FUZZ_SECONDS:-60} -max_len=512 -timeout=30 -artifact_prefix=target/fuzz/ -print_final_stats=1

pytest: $(STAMPS)/native $(STAMPS)/failpoints $(STAMPS)/wheel ## the Python tests
	$(BIN)/python -m pytest -q -n $(PYTEST_JOBS) --dist loadgroup --junitxml=$(STAMPS)/pytest.xml \
	    -m "not soak and not realworld" $(PYTEST_ARGS) $(SHOW)

soak: build $(STAMPS)/failpoints ## the long form of the tests: minutes each
	$(BIN)/python -m pytest -m soak --timeout 0 $(PYTEST_ARGS)
	PAGEONE_SOAK=1 PAGEONE_ROUNDS=20000 cargo test -q -p sdtree --release --test memory --test linearizable --test churn
	$(MAKE) loom LOOM_MAX_DURATION=120 LOOM_MAX_PREEMPTIONS=3
	$(MAKE) sanitize
	$(MAKE) fuzz FUZZ_SECONDS=600

# Debian: apt install stress-ng gunicorn redis-server redis-tools qemu-system-x86 linux-image-cloud-amd64 gcc golang-go
# default-jdk-headless. What is not there is skipped, and named.
realworld: build $(STAMPS)/realworld ## programs of the distribution, judged by checks of their own (the Makefile names the packages)
	$(BIN)/python -m pytest -s -m realworld --timeout 600 $(PYTEST_ARGS)

bench: build ## tree, engine and KSM in their short form (`pageone bench NAME` is the long one)
	$(BIN)/pageone bench tree --pages 20000 --rounds 1
	$(BIN)/pageone bench engine --size 128MiB --scaling 0.125,0.25
	$(BIN)/pageone bench ksm --pages 8192 --rounds 1 -d random -d unique -d tail -d memory $(BENCH_ARGS)

docs: $(STAMPS)/docs ## the documentation site, in site/, made in a virtual environment of its own
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict

criterion: $(STAMPS)/venv ## the Criterion benchmarks of the tree and its peers (BENCH_ARGS: a name, or options of Criterion)
	cargo bench -p baselines --features criterion --bench tree -- --warm-up-time 0.5 --measurement-time 2 $(BENCH_ARGS)

clean: ## remove everything that was made
	rm -rf $(VENV) $(DOCS_VENV) site $(STAMPS) target .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find $(wildcard python tests benches examples tools) -name __pycache__ -prune -exec rm -rf {} +
	rm -f python/pageone/_native*.so

# --- what stands between -------------------------------------------------------------------------------------

# Checked once, before anything is installed: what is missing is named with the package that has it.
$(STAMPS)/toolchain: tools/check_toolchain.sh Cargo.toml
	@mkdir -p $(STAMPS)
	@PYTHON=$(PYTHON) tools/check_toolchain.sh
	@touch $@

$(STAMPS)/venv: $(STAMPS)/toolchain pyproject.toml tools/requirements.py
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python tools/requirements.py pyproject.toml > $(STAMPS)/requirements.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check -r $(STAMPS)/requirements.txt
	@touch $@

$(STAMPS)/realworld: $(STAMPS)/venv pyproject.toml tools/requirements.py
	$(BIN)/python tools/requirements.py pyproject.toml bench realworld > $(STAMPS)/requirements-realworld.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check -r $(STAMPS)/requirements-realworld.txt
	@touch $@

# Neither Rust nor the native core is needed: the API pages are read from the sources.
$(STAMPS)/docs: pyproject.toml tools/requirements.py
	@mkdir -p $(STAMPS)
	$(PYTHON) -m venv --clear $(DOCS_VENV)
	$(DOCS_VENV)/bin/python tools/requirements.py pyproject.toml --only docs > $(STAMPS)/requirements-docs.txt
	$(DOCS_VENV)/bin/python -m pip install -q --disable-pip-version-check -r $(STAMPS)/requirements-docs.txt
	@touch $@

$(STAMPS)/native: $(STAMPS)/venv $(RUST_SRC)
	PIP_QUIET=1 VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/maturin develop --release --features bench -q
	@touch $@

# Never where Python finds it: tests give its path to the guardians that they start. Hardly optimised as a whole, which is
# what building takes long for; after the native core, so that it is never the older one.
$(STAMPS)/failpoints: $(STAMPS)/native
	cargo rustc -q --release -p pageone-bindings --features failpoints,pyo3/extension-module \
	    --example native_with_failpoints -- -C opt-level=0 -C debuginfo=0
	@touch $@

# What the tests install: around the native core that is there, peers included, which is not built a second time.
$(STAMPS)/wheel: $(STAMPS)/native $(filter python/%,$(PY_SRC))
	rm -rf target/wheel
	VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/maturin build --release --features bench -q --out target/wheel
	@touch $@

$(STAMPS)/rustfmt: $(STAMPS)/toolchain $(RUST_SRC)
	cargo fmt --all --check
	@touch $@

$(STAMPS)/clippy: $(STAMPS)/venv $(RUST_SRC)
	$(AFTER) cargo clippy -q --workspace --all-targets --features pageone-bindings/bench,baselines/criterion -- -D warnings
	$(AFTER) cargo clippy -q -p pagemem --all-targets --features failpoints -- -D warnings
	@touch $@

# AArch64 is written, and compiled wherever its target has been installed; nothing here can run it.
$(STAMPS)/aarch64: export CARGO_BUILD_TARGET = aarch64-unknown-linux-gnu
$(STAMPS)/aarch64: $(STAMPS)/toolchain $(RUST_SRC)
	@if test -d "$$(rustc --print target-libdir --target $(CARGO_BUILD_TARGET) 2>/dev/null)"; then \
	    $(AFTER) cargo check -q $(CRATES) && touch $@; \
	else echo "not checked for $(CARGO_BUILD_TARGET): rustup target add $(CARGO_BUILD_TARGET)"; fi

# The oldest compiler that the manifests promise, wherever rustup has it. What is younger in the standard library clippy
# refuses in any case (incompatible_msrv).
$(STAMPS)/msrv: $(STAMPS)/toolchain $(RUST_SRC)
	@oldest=$$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml); \
	if rustup run $$oldest rustc --version >/dev/null 2>&1; then \
	    CARGO_TARGET_DIR=target/msrv cargo +$$oldest check -q -p keyhash -p sdtree && touch $@; \
	else echo "not checked with Rust $$oldest: rustup toolchain install $$oldest"; fi

$(STAMPS)/rustdoc: $(STAMPS)/toolchain $(RUST_SRC)
	RUSTDOCFLAGS="-D warnings" cargo doc -q --no-deps -p keyhash -p sdtree
	@touch $@

$(STAMPS)/ruff: $(STAMPS)/venv $(PY_SRC)
	$(BIN)/ruff check -q .
	$(BIN)/ruff format -q --check .
	@touch $@

$(STAMPS)/mypy: $(STAMPS)/venv $(PY_SRC)
	$(AFTER) $(BIN)/mypy
	@touch $@

.PHONY: help demo test lint build wheel docs failpoints rust-test loom sanitize fuzz pytest soak realworld crates bench criterion clean
