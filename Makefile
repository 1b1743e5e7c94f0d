# make demo    see what it is for: builds, then shows a load balancer and its apps with and without underpass
# make test    everything: unit tests, the command line, the protocol, network namespaces with real load balancers
# make lint    formatting, clippy, and that the core builds alone
# make bench   speed beside no tunnel, other tunnels and TLS, in the same run, on an idle and a busy machine;
#              ARGS="--tests http --loads idle" for a part, HAPROXY=PATH and WIREGUARD_GO=PATH for newer rivals
# make fuzz    each fuzz target for SECONDS (60), or RUNS times; goes on from what it found before and from the corpora that
#              `make test` replays; TARGETS="datagram config" for a part
# make asan    the unit tests, the I/O layer's among them, with AddressSanitizer
# make loom    what workers share, in every order in which threads may meet
# make mutants what of src/proto, or FILES, can be wrong without a test that fails
# make deny    licenses, sources and known weaknesses of what we depend on
# make build   target/release/underpass
# make package target/debian/underpass_VERSION_ARCH.deb; make package-test installs, runs, upgrades and removes it on a clean
#              Debian with a systemd of its own
# make deps    Debian packages that `make test` and `make bench` need; both call it themselves

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.PHONY: demo test lint bench peers fuzz asan loom mutants deny build package package-test deps package-deps bench-deps build-deps

CARGO ?= cargo
# Namespaces are root's: anyone else is asked for a password there, and only there.
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo)
# Where Debian puts administrators' programs, which is not on everyone's path.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

# program:packages
BUILD_PROGRAMS := gcc:gcc,libc6-dev
TEST_PROGRAMS := $(BUILD_PROGRAMS) haproxy:haproxy nginx:nginx-light iperf3:iperf3 wrk:wrk tcpdump:tcpdump nft:nftables \
	ip:iproute2 ping:iputils-ping arping:iputils-arping wireguard-go:wireguard-go wg:wireguard-tools curl:curl \
	ethtool:ethtool python3:python3 promtool:prometheus systemd-analyze:systemd
BENCH_PROGRAMS := stunnel:stunnel4 openssl:openssl
# Tunnels to compare with, program:crate.
PEERS := boringtun-cli:boringtun-cli gotatun:gotatun-cli quincy-client:quincy-client quincy-server:quincy-server \
	quincy-identity:quincy-identity

demo: build
	$(AS_ROOT) target/release/underpass demo

test: deps
	@$(call run_tests_as_root)
	set -x
	$(CARGO) test --locked --workspace

lint: build-deps
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) check --locked --lib --no-default-features

bench: deps bench-deps peers
	$(CARGO) build --locked --release --bin underpass
	$(CARGO) build --locked --profile lab --package netns-tests --bin bench
	$(AS_ROOT) env $(foreach name,HAPROXY WIREGUARD_GO,$(if $($(name)),$(name)=$($(name)))) target/lab/bench $(ARGS)

# One that can't be built is missing in the tables, which then say so.
peers: build-deps
	@for pair in $(PEERS); do
		[ -x "target/peers/bin/$${pair%%:*}" ] || $(CARGO) install --locked --root target/peers "$${pair#*:}" ||
			echo "$${pair#*:} could not be built" >&2
	done

# cargo-fuzz wants a nightly compiler; the variable lets the stable one do. What is found goes to the first directory.
# Without a sanitizer, since none of our unsafe code is reached, and several times as much is tried in the same time.
fuzz: export RUSTC_BOOTSTRAP := 1
fuzz: export RUSTC_WRAPPER := $(CURDIR)/tests/fuzz/rustc
fuzz: build-deps
	command -v cargo-fuzz > /dev/null || $(CARGO) install --locked cargo-fuzz
	for target in $(or $(TARGETS),datagram config inbound outbound policy segment_size); do
		found="tests/fuzz/target/found/$$target"
		mkdir -p "$$found"
		$(CARGO) fuzz run --fuzz-dir tests/fuzz --sanitizer none "$$target" "$$found" "tests/fuzz/corpus/$$target" -- \
			$(if $(RUNS),-runs=$(RUNS),-max_total_time=$(or $(SECONDS),60))
	done

# Not `--cfg loom`, which would have other crates use loom too. Three preemptions find nearly all that more would find.
loom: build-deps
	LOOM_MAX_PREEMPTIONS=3 RUSTFLAGS="--cfg underpass_loom" $(CARGO) test --locked --target-dir target/loom --lib loom_

# A target of its own, so that build scripts and macros are not instrumented.
HOST := $(shell rustc --version --verbose | sed -n 's/^host: //p')
asan: build-deps
	RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address" $(CARGO) test --locked --target "$(HOST)" --target-dir target/asan --lib

# In a copy of the core alone, so that a mutant costs seconds: its tests need neither the daemon nor what stands for the kernel.
MUTANTS := target/mutants/core
mutants: export CARGO_PROFILE_DEV_DEBUG := none
mutants: build-deps
	command -v cargo-mutants > /dev/null || [ -x target/tools/bin/cargo-mutants ] ||
		$(CARGO) install --locked --root target/tools cargo-mutants
	rm -rf $(MUTANTS)/src $(MUTANTS)/tests
	mkdir -p $(MUTANTS)/tests/vectors
	cp -r Cargo.lock src $(MUTANTS)
	cp -r tests/proto $(MUTANTS)/tests
	cp tests/vectors/*.json $(MUTANTS)/tests/vectors
	sed '/^members = /d; /^\[\[bench\]\]/,/^$$/d; /^underpass = { path = "\."/d' Cargo.toml > $(MUTANTS)/Cargo.toml
	cd $(MUTANTS)
	PATH="$(CURDIR)/target/tools/bin:$$PATH" $(CARGO) mutants --in-place --no-default-features --minimum-test-timeout 20 \
		$(foreach file,$(or $(FILES),src/proto/**),--file '$(file)') -- --lib --test proto -- --skip a_thousand_peers

deny:
	command -v cargo-deny > /dev/null || [ -x target/tools/bin/cargo-deny ] ||
		$(CARGO) install --locked --root target/tools cargo-deny
	PATH="$$PATH:$$PWD/target/tools/bin" $(CARGO) deny --locked check

build: build-deps
	$(CARGO) build --locked --release --bin underpass

package: build
	command -v cargo-deb > /dev/null || [ -x target/tools/bin/cargo-deb ] ||
		$(CARGO) install --locked --root target/tools cargo-deb
	mkdir -p target/package/man
	rm -f target/package/man/*
	target/release/underpass man --out target/package/man
	for shell in bash zsh fish; do
		target/release/underpass completions "$$shell" > "target/package/underpass.$$shell"
	done
	PATH="$(CURDIR)/target/tools/bin:$$PATH" $(CARGO) deb --locked --no-build --strip

package-test: package package-deps
	$(AS_ROOT) netns-tests/package-test target/debian/underpass_*.deb

deps:
	@$(call install,$(TEST_PROGRAMS))

package-deps:
	@$(call install,debootstrap:debootstrap)

bench-deps:
	@$(call install,$(BENCH_PROGRAMS))

build-deps:
	@$(call install,$(BUILD_PROGRAMS))

# Installs the packages of $(1) whose program is missing, without starting the services in them.
define install
missing=()
for pair in $(1); do
	command -v "$${pair%%:*}" > /dev/null || missing+=($$(tr , ' ' <<< "$${pair#*:}"))
done
[ "$${#missing[@]}" -gt 0 ] || exit 0
if ! command -v apt-get > /dev/null; then
	echo "Please install what Debian calls: $${missing[*]}" >&2
	exit 1
fi
policy=/usr/sbin/policy-rc.d
if [ ! -e "$$policy" ]; then
	trap '$(AS_ROOT) rm -f '"$$policy" EXIT
	printf '#!/bin/sh\nexit 101\n' | $(AS_ROOT) tee "$$policy" > /dev/null
	$(AS_ROOT) chmod 755 "$$policy"
fi
$(AS_ROOT) apt-get -q update
$(AS_ROOT) env DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends "$${missing[@]}"
endef

# Has cargo start the test programs through sudo where the user is not root; cargo itself stays the user's.
define run_tests_as_root
if [ -n "$(AS_ROOT)" ]; then
	host=$$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
	export "CARGO_TARGET_$${host}_RUNNER=$(AS_ROOT) --preserve-env"
fi
endef
