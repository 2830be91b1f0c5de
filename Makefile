# `make run` and `make test` are all there is to set up, on a fresh machine that has Rust.
#
# What else they need they install: Debian packages by name, when a command is missing, and
# cargo-nextest. Everything is built for the whole workspace at once, because cargo resolves features
# per selection: asking for one package and then for another would compile most dependencies twice.

CARGO ?= cargo
# The version the tests are known to run under; a newer one may ask for a newer Rust.
NEXTEST_VERSION := 0.9.143
FUZZ_VERSION := 0.13.2
# The crash tests need the points at which a test build kills itself. No other build has them.
TEST_FEATURES := --features granary/crash-points
# The proxies that `make test-all` puts in front, as Debian packages.
PROXIES := nginx haproxy apache2-bin varnish
# How long `make soak` and each target of `make fuzz` run, and the dice of `make soak`; print the seed of a failure and give it again.
SECONDS ?= 60
SEED ?=
# How often `make crash` kills, and the round it goes on from.
KILLS ?= 25
MOMENTS ?= 2000
FROM ?=

# How many worlds `make simulate` lives, and the first of them; a SEED tells one of them step by step.
SEEDS ?= 100000
START ?= 0

.DEFAULT_GOAL := help
.PHONY: help run test test-all lint bench gate count fuzz soak crash faults clients simulate compiler curl strace valgrind postgres prometheus nextest components proxies

help: ## What can be made
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST)

# The dev profile: it builds much faster than release, and the crates that touch pixels and
# hashes are optimised in it all the same (Cargo.toml). For service, build with --release.
run: compiler curl ## Start Granary with no configuration: built-in engine, files, SQLite, loopback
	$(CARGO) build --locked --workspace --bin granary
	@exec "$$($(CARGO) metadata --locked --no-deps --format-version 1 \
		| sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')/debug/granary"

test: compiler curl strace postgres prometheus nextest ## Run every test
	$(CARGO) nextest run --locked --workspace $(TEST_FEATURES)
	$(CARGO) test --locked --workspace $(TEST_FEATURES) --doc

test-all: compiler nextest proxies gate ## What `make test` leaves out: real proxies and clients in front, which it unpacks below target/, and `make gate`
	$(CARGO) nextest run --locked --workspace $(TEST_FEATURES) --run-ignored only --profile proxies \
		-E 'test(/^proxies::/)'

lint: compiler components deploy ## Formatting, clippy with and without crash points, documentation, deploy/
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --locked --workspace --all-targets $(TEST_FEATURES),granary/bench -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --document-private-items

.PHONY: deploy linters
deploy: compiler linters ## Check every file below deploy/, and that the checks find faults
	deploy/check
	deploy/check --self-test

bench: compiler ## Measure what a hit and the journal cost, and memory under bad clients; wants a quiet machine
	$(CARGO) bench --locked --workspace --features granary/bench --bench cost --bench memory

# Without link-time optimisation, which takes long and moves the numbers.
gate: compiler valgrind ## CPU instructions of each step of a hit, against benches/instructions.toml; then with planted slowness
	CARGO_PROFILE_BENCH_LTO=off CARGO_PROFILE_BENCH_CODEGEN_UNITS=16 $(CARGO) bench --locked --workspace \
		--features granary/bench --bench instructions
	CARGO_PROFILE_BENCH_LTO=off CARGO_PROFILE_BENCH_CODEGEN_UNITS=16 $(CARGO) bench --locked --workspace \
		--features granary/bench --bench instructions -- --self-test

count: ## Lines of code, long functions and names, to compare with tools/count.baseline
	@tools/count

soak: compiler nextest ## Hits, misses, hang-ups and restarts for SECONDS=60, counted to the credit
	SOAK_SECONDS=$(SECONDS) SOAK_SEED=$(SEED) $(CARGO) nextest run --locked --workspace $(TEST_FEATURES) \
		--run-ignored only --profile soak -E 'test(=soak::everything_adds_up_after_a_long_time)'

crash: compiler nextest ## Kill it KILLS=25 times at every crash point and MOMENTS=2000 times at any moment
	CRASH_KILLS=$(KILLS) CRASH_MOMENTS=$(MOMENTS) CRASH_SEED=$(SEED) CRASH_FROM=$(FROM) \
		$(CARGO) nextest run --locked --workspace $(TEST_FEATURES) \
		--run-ignored only --profile soak -E 'test(=campaign::the_long_campaign)'

faults: compiler strace nextest ## Faults in their long form: ten thousand hang-ups, cuts everywhere, every call to the disk
	DISCONNECTS=10000 CUT_UPLOADS=100 CUT_FILES=20 DISK_FAULTS=1 \
		$(CARGO) nextest run --locked --workspace $(TEST_FEATURES) --profile soak --no-fail-fast \
		-E 'test(/^(disconnects|downloads|uploads|disk|race)::/)'

clients: compiler nextest ## Bad clients in their long form: 6,000 slow ones, 50 stops under load, 20 certificates, 100,000 pipelined requests
	CONNECTIONS=2000 STOPS=50 SWAPS=20 PIPELINED=100000 \
		$(CARGO) nextest run --locked --workspace $(TEST_FEATURES) --profile soak --no-fail-fast \
		-E 'test(/^(connections|framing|stopping|tls)::/)'

simulate: compiler nextest ## Whole lives with all faults, SEEDS=100000 of them from START=0, or one SEED=4711 step by step
	SIM_SEEDS=$(SEEDS) SIM_START=$(START) SIM_SEED=$(SEED) $(CARGO) nextest run --locked --workspace --lib $(TEST_FEATURES) \
		--cargo-profile simulate --profile simulate -E 'test(=testing::simulation::no_promise_is_broken_in_any_world)'

fuzz: compiler ## Fuzz each target for SECONDS=60, from its corpus; `make test` replays the corpus
	$(call install,g++,g++)
	@$(CARGO) fuzz --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-fuzz --version $(FUZZ_VERSION)
	@for target in $$($(CARGO) fuzz list); do \
		$(CARGO) fuzz run -s none $$target -- -max_total_time=$(SECONDS) -max_len=65536 || exit 1; done

# packages NAME, PACKAGES: installs Debian packages.
define packages
command -v apt-get >/dev/null || { echo "$(1) is missing: install it" >&2; exit 1; }; \
		if [ "$$(id -u)" = 0 ]; then root=; else root=sudo; fi; \
		$$root apt-get update -q && $$root apt-get install -qy --no-install-recommends $(2)
endef

# install COMMAND, PACKAGES: makes sure of a command by Debian packages.
define install
	@command -v $(1) >/dev/null || { $(call packages,$(1),$(2)); }
endef

# venv FOLDER, REQUIREMENTS: installs packages of PyPI into a folder, and marks it as installed.
define venv
@python3 -c 'import ensurepip, venv' 2>/dev/null || { $(call packages,Python,python3-venv); }
	python3 -m venv --clear $(1)
	$(1)/bin/pip install --quiet --disable-pip-version-check --no-compile --no-deps --requirement $(2)
	@touch $(1)/installed
endef

# For linking, for SQLite, and for the assembly in ring and blake3.
compiler:
	$(call install,cc,gcc libc6-dev)
	@$(CARGO) --version >/dev/null || { echo "Rust is missing: install it from https://rustup.rs" >&2; exit 1; }

# For the line that `make run` prints, and for the tests that run this project's documentation.
curl:
	$(call install,curl,curl)

# For the count of instructions.
valgrind:
	$(call install,valgrind,valgrind)

# For the tests in which a disk fails: it makes chosen system calls return errors.
strace:
	$(call install,strace,strace)

# For the tests of the fleet's ledger. Debian keeps the server's programs off the PATH.
postgres:
	@ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || { $(call packages,PostgreSQL,postgresql); }
	$(call install,/usr/sbin/pgbouncer,pgbouncer)

# For the tests of boards, rules and alerts: a real Prometheus, and promtool.
prometheus:
	$(call install,promtool,prometheus)

nextest: compiler
	@$(CARGO) nextest --version >/dev/null 2>&1 || \
		$(CARGO) install --locked cargo-nextest --version $(NEXTEST_VERSION)

components:
	@$(CARGO) fmt --version >/dev/null 2>&1 && $(CARGO) clippy --version >/dev/null 2>&1 || \
		rustup component add rustfmt clippy

# For the files below deploy/. What Debian does not have comes from PyPI, each in the version that is known.
linters: target/deploy-tools/installed
	$(call install,shellcheck,shellcheck)
	$(call install,docker-compose,docker-compose)
	$(call install,promtool,prometheus)
	$(call install,kubectl,kubernetes-client)
	$(call install,systemd-analyze,systemd)

target/deploy-tools/installed: deploy/requirements.txt
	$(call venv,target/deploy-tools,$<)

# For the tests with real proxies and clients. The proxies are unpacked with the libraries that are missing here, and not
# installed: nothing of them is started but by a test.
proxies: target/proxies/unpacked target/proxies/python/installed
	$(call install,node,nodejs)

target/proxies/unpacked:
	@command -v apt-get >/dev/null || { echo "apt-get is missing: it brings the proxies" >&2; exit 1; }
	@rm -rf target/proxies/debs && mkdir -p target/proxies/debs/partial
	@if [ "$$(id -u)" = 0 ]; then root=; else root=sudo; fi; \
		$$root apt-get update -q && $$root apt-get install -qy --no-install-recommends --reinstall --download-only \
			-o Dir::Cache::archives="$(CURDIR)/target/proxies/debs" -o APT::Sandbox::User=root $(PROXIES)
	@for package in target/proxies/debs/*.deb; do dpkg-deb -x "$$package" target/proxies || exit 1; done
	@rm -rf target/proxies/debs && touch $@

target/proxies/python/installed: tests/it/proxies/requirements.txt
	$(call venv,target/proxies/python,$<)
