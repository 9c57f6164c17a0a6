# `make help` lists what can be made. Every command is printed before it runs.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

GO ?= go
# How long `make fuzz` tries each fuzz function.
FUZZTIME ?= 30s
# Flags of the yardstick of `make bench`, such as --bytes 1GB --big=false.
BENCH ?=
# Which Go benchmarks `make benchmarks` runs, of which packages.
BENCHMARKS ?= .
PKG ?= ./...
# Flags of the table that `make lab` makes, such as --write e2e/RESULTS.md.
LAB ?=

# Flags of the load program of `make load`.
LOAD ?=

# Where `make install` puts the programs; DESTDIR goes before it, for packages.
PREFIX ?= /usr/local
DESTDIR ?=

BIN := bin
TOOLS := .cache/bin
LINTER := $(TOOLS)/golangci-lint
MODULE := github.com/damselfly-p2p/damselfly
# The house test (the root), the end-to-end tests, and the networks that those make have
# targets of their own: they need root, and the machine for themselves.
UNITS = $(shell $(GO) list ./... | grep -vxE '$(MODULE)(/e2e(/fabric|/process|/rogue)?)?')

# Go stamps the commit into programs. Where git does not tell it, as in a tree of
# another owner, Go would fail instead of leaving it out.
ifeq ($(shell git rev-parse --verify HEAD >/dev/null 2>&1 && echo yes),)
export GOFLAGS := $(filter-out -buildvcs=%,$(GOFLAGS)) -buildvcs=false
endif

.PHONY: help build install test needs vet house unit e2e lint race fuzz bench benchmarks sim lab load demo proto proto-check clean

help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build static programs: bin/scheduler, bin/seed, bin/dfget
	CGO_ENABLED=0 $(GO) build -trimpath -o $(BIN)/ ./scheduler ./seed ./dfget

install: build ## install the programs to DESTDIR$(PREFIX)/bin, PREFIX being /usr/local
	install -d $(DESTDIR)$(PREFIX)/bin
	install -m 0755 $(BIN)/scheduler $(BIN)/seed $(BIN)/dfget $(DESTDIR)$(PREFIX)/bin/

test: needs vet house unit lint e2e ## run everything, cheap failures first; as root it installs what is missing

needs: ## check that this machine has what the tests run; root installs it
	scripts/needs

vet: ## vet every package
	$(GO) vet ./...

house: ## check the rules of the house: imports, names, sizes
	$(GO) test -count=1 .

unit: ## test all packages but e2e, with the race detector
	$(GO) test -race $(UNITS)

e2e: ## test the real programs with real registries, runtimes and links; needs root
	$(GO) test -count=1 -p 1 -timeout 40m ./e2e/fabric ./e2e/process ./e2e/rogue ./e2e
	$(GO) run ./e2e/lab table --short

lint: $(LINTER) proto-check ## run golangci-lint, and check that the generated code is current
	$(LINTER) run

race: ## test everything with the race detector, in the programs of the e2e tests too
	DAMSELFLY_E2E_RACE=1 $(GO) test -race -timeout 30m ./...

fuzz: ## run each fuzz function for FUZZTIME (30s)
	scripts/fuzz $(FUZZTIME)

bench: ## measure the data plane beside what this machine can do: a table with its bars, some 5 minutes
	$(GO) run ./e2e/bench $(BENCH)

benchmarks: ## run the Go benchmarks named BENCHMARKS (.) in PKG (./...)
	$(GO) test -run '^$$' -bench '$(BENCHMARKS)' -benchmem -timeout 60m $(PKG)

sim: ## simulate what the scheduler promises: a table of scenarios with their bars, 1,000 random worlds, 900 random crowds
	DAMSELFLY_SIM=1 $(GO) test -v -count=1 -timeout 30m -run 'TestTable|TestRandomWorlds' ./scheduler/sim
	DAMSELFLY_SIM=1 $(GO) test -count=1 ./scheduler/core/...
	$(GO) test -count=1 ./scheduler/sim

lab: ## measure the real programs on shaped links, with faults: a table of rows with their bars, half an hour; needs root
	$(GO) run ./e2e/lab table $(LAB)

load: ## measure a scheduler with 5,000 attending streams at 20,000 leases a second; LOAD='--streams 500 …' changes it
	$(GO) run ./e2e/load run $(LOAD)

demo: build ## show four nodes pull one image on this machine; KEEP=1 leaves them running
	$(GO) run ./e2e/demo -bin $(BIN)

proto: ## generate the Go code of proto/ anew; needs protoc
	scripts/proto

# Part of lint.
proto-check:
	scripts/proto --check

clean: ## remove what was built here
	rm -rf $(BIN) .cache

$(LINTER): tools/lint/go.mod tools/lint/go.sum
	$(GO) -C tools/lint build -trimpath -o $(CURDIR)/$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint
	@touch $@
