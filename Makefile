# Everything that a person or CI does with this repository. `make` alone lists
# the targets. Each target prints the commands that it runs.

SHELL       := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

# giouring reaches into package syscall by linkname, which the Go linker refuses
# since 1.23 unless told otherwise; so the engine sits behind a build tag, and
# whoever sets the tag sets the flag. A plain `go build ./...` works as well,
# with the sync engine alone.
CHECKED   := -tags giouring,invariants -ldflags=-checklinkname=0
BUILDFLAGS = -tags giouring -ldflags='-checklinkname=0 -X main.version=$(VERSION)'

FUZZTIME ?= 60s
CHECKS   ?= 20000
ROUNDS   ?= 100
CUTS     ?= 500
SEED     ?=
WORKLOAD ?=
PKG      ?= ./...

# How long one package's tests may take. The slowest stays far below it; a test
# that hangs is reported with its stacks instead of eating the CI's budget.
TEST_TIMEOUT ?= 10m

step = @printf '\n==> %s\n' "$(1)"

.PHONY: help
help: ## list the targets
	@awk -F':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# ---- building and running --------------------------------------------------

.PHONY: deps
deps: ## install the Debian packages that the targets need (as root), or say which
	@scripts/install-deps.sh require fio qemu-system-x86

.PHONY: build
build: ## build bin/redoubt with the io_uring engine inside
	$(call step,build: bin/redoubt $(VERSION) with the engines uring and sync)
	$(GO) build $(BUILDFLAGS) -o bin/redoubt ./cmd/redoubt
	@ls -lh bin/redoubt | awk '{ print "built " $$9 ", " $$5 }'

.PHONY: run
run: build ## the main job: eight devices, a node, a real trace, a SIGKILL, a proof (uses ./data, 4 GiB)
	$(call step,run: the demo; it says what it does)
	bin/redoubt demo -dir ./data

.PHONY: bench
bench: build ## measure against fio and the floor; table, JSON and picture in bench/results
	@scripts/install-deps.sh require fio
	$(call step,bench: every figure is a ratio within this run)
	bin/redoubt bench all -out bench/results

# ---- checking ----------------------------------------------------------------

.PHONY: check
check: fmt vet staticcheck unit ## the quick gate before a commit: format, vet, staticcheck, unit tests

.PHONY: test
test: ## everything that CI needs: check, race with invariants, fuzz smoke, short power cut
	@start=$$SECONDS; \
	$(MAKE) --no-print-directory fmt vet staticcheck unit race fuzz-smoke powercut-smoke; \
	printf '\n==> test: all steps passed in %d s\n' $$((SECONDS - start))

.PHONY: fmt
fmt: ## fail if a Go file is not gofmt'd
	$(call step,fmt: gofmt over every tracked or new Go file)
	@scripts/check-format.sh

.PHONY: vet
vet: ## go vet, both build variants
	$(call step,vet: plain and with the ring and the invariants)
	$(GO) vet ./...
	$(GO) vet -tags giouring,invariants ./...

.PHONY: staticcheck
staticcheck: ## staticcheck (a tool in go.mod), both build variants
	$(call step,staticcheck: plain and with the ring and the invariants)
	$(GO) tool staticcheck ./...
	$(GO) tool staticcheck -tags giouring,invariants ./...

.PHONY: unit
unit: ## unit tests, plain build (sync engine)
	$(call step,unit: plain build (sync engine))
	$(GO) test -timeout $(TEST_TIMEOUT) $(PKG)

.PHONY: race
race: ## all tests with both engines, invariants and the race detector
	$(call step,race: both engines + invariants + race detector)
	$(GO) test $(CHECKED) -race -timeout $(TEST_TIMEOUT) $(PKG)

.PHONY: fuzz-smoke
fuzz-smoke: ## every fuzz target for 10 s
	$(call step,fuzz-smoke: every fuzz target for 10 s)
	scripts/fuzz.sh 10s

.PHONY: powercut-smoke
powercut-smoke: ## the planted bugs and a few power cuts, when qemu is there
	$(call step,powercut-smoke: power cuts in a virtual machine)
	scripts/powercut.sh smoke

# ---- long campaigns ------------------------------------------------------------

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (default 60s)
	$(call step,fuzz: every fuzz target for $(FUZZTIME))
	scripts/fuzz.sh $(FUZZTIME)

.PHONY: crash
crash: ## every property test with CHECKS sequences (default 20000), crashes included, and ROUNDS (100) SIGKILLs
	$(call step,crash: $(ROUNDS) SIGKILLs of the real binary)
	REDOUBT_KILL_ROUNDS=$(ROUNDS) $(GO) test -count=1 -timeout 0 -v -run Killed ./cmd/redoubt
	$(call step,crash: $(CHECKS) sequences of every property)
	scripts/crash.sh $(CHECKS)

.PHONY: powercut
powercut: ## CUTS power cuts (default 500) of the real binary on emulated NVMe; SEED=s repeats a life
	$(call step,powercut: $(CUTS) cuts)
	CUTS=$(CUTS) SEED=$(SEED) WORKLOAD=$(WORKLOAD) scripts/powercut.sh campaign

.PHONY: clean
clean: ## remove what was built and fetched; ./data is yours and stays
	rm -rf bin .cache
	$(GO) clean -testcache
