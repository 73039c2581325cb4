# Paddock. `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

export CGO_ENABLED := 0
# Debian's Go fetches no other by default; go.mod says which is needed.
export GOTOOLCHAIN ?= auto
VERSION := $(shell git describe --always --dirty --tags 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
BIN := bin

.PHONY: help build run test test-kvm chaos lint fmt bench humaneval clean deps deps-test

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 14

build: ## build bin/paddock and bin/paddock-agent
	@mkdir -p $(BIN)
	go build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/paddock ./cmd/paddock
	go build -trimpath -buildvcs=false -ldflags '-s -w' -o $(BIN)/paddock-agent ./cmd/paddock-agent  # the same code, the same image

run: deps build ## start Paddock, run a Python job in a real machine, show its output live, stop
	@deploy/as-root.sh deploy/demo.sh

test: deps-test build ## install what the tests need and run them all
	@deploy/as-root.sh deploy/test.sh

test-kvm: deps-test build ## the tests that want KVM, in an emulated host where this one's does not work: docs/kvm-host.md
	@deploy/as-root.sh deploy/test-kvm.sh

chaos: deps-test build ## break a whole Paddock while clients use it, and look whether what is promised holds; longer: go run ./test/chaos/cmd --help
	@deploy/as-root.sh deploy/chaos.sh

lint: ## golangci-lint (pinned in tools/go.mod), go mod tidy, import directions
	go tool -modfile=tools/go.mod golangci-lint run ./...
	go mod tidy -diff
	go test ./test/arch/

fmt: ## format the tree
	go tool -modfile=tools/go.mod golangci-lint fmt ./...

bench: deps-test build ## measure: latency, restore, throughput, density
	@deploy/as-root.sh deploy/bench.sh

humaneval: deps build ## run the HumanEval tasks, right and broken, through the running system
	@deploy/as-root.sh go run ./test/humaneval

clean: ## remove bin (images and templates stay: in /var/lib/paddock, and in ~/.cache/paddock for tests and measurements)
	rm -rf $(BIN)

deps: ## install what running needs, saying what and why
	@deploy/install-deps.sh run

deps-test: ## install what testing needs
	@deploy/install-deps.sh test
