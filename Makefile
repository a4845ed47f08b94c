# `make` lists what there is to make.

GO       ?= go
FUZZTIME ?= 60s
SOAKTIME ?= 10m
SOAKKILLS ?= 200
TRYTWICE = bin/gotestsum --format standard-quiet --rerun-fails=1 --rerun-fails-max-failures=6 --rerun-fails-run-root-test
export PATH := $(PATH):/usr/sbin:/sbin
# As cmd/thaw/build and setup.sh build: what they have compiled is not compiled again for tests.
export CGO_ENABLED ?= 0
export GOFLAGS := $(strip $(shell $(GO) env GOFLAGS) -trimpath)

.DEFAULT_GOAL := help
.PHONY: help demo test build corpus setup fuzz soak bench lint

help: ## this list
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: ## convert two images that share a base, print what is shared, start a program from one
	@./setup.sh --demo
	@$(MAKE) --no-print-directory build
	@demo/run
	@[ "$$(id -u)" != 0 ] || demo/functions

test: setup ## go vet and every test; as root, also those that mount and start containers
	@$(GO) vet ./... && $(GO) vet -tags cloud ./cmd/thaw
	@# cmd/thaw's takes ten minutes, and longer on a busy machine. docs/decisions/016-second-try.md says why a test gets two.
	@$(TRYTWICE) --packages ./... -- -timeout 40m
	@# What only that build has: the tests in the files that say so.
	@tests=$$(sed -nE 's/^func (Test[A-Za-z0-9_]+)\(.*/\1/p' $$(grep -l '^//go:build .*cloud' cmd/thaw/*_test.go) | paste -sd'|') && \
		$(TRYTWICE) --packages ./cmd/thaw -- -tags cloud -run "^($$tests)$$"

build: ## bin/thaw, with the programs it starts inside
	@cmd/thaw/build

corpus: ## the images of corpus/, into out/corpus or $THAW_CORPUS
	@./setup.sh

setup: ## what tests and demo need: packages, tools, corpus
	@./setup.sh

fuzz: ## every fuzz target for FUZZTIME (60s)
	@set -e; for p in $$($(GO) list ./...); do \
		for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz'); do \
			echo "$$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$p; \
		done; \
	done

soak: setup ## faults at random for SOAKTIME (10m) while images are read, then SOAKKILLS (200) kills of each role; SOAKSEED=N repeats a run's
	@THAW_SOAK=$(SOAKTIME) THAW_SOAK_SEED=$(SOAKSEED) $(GO) test ./cmd/thaw -count=1 -v -run '^TestSoak$$' -timeout 24h
	@THAW_KILLS=$(SOAKKILLS) THAW_KILLS_SEED=$(SOAKSEED) $(GO) test ./cmd/thaw -count=1 -v -run '^TestPlatformKill$$' -timeout 24h

bench: setup build ## every published number, with the 9,000 MiB image
	@corpus/build big
	@$(GO) test -run '^$$' -bench . -timeout 3h ./...

lint: ## gofmt, go vet, the rules of internal/tidy
	@test -z "$$(gofmt -l $$(git ls-files '*.go') | tee /dev/stderr)"
	@$(GO) vet ./... && $(GO) vet -tags cloud ./cmd/thaw
	@$(GO) test ./internal/tidy
