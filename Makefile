# What there is to run: make help.

FUZZTIME ?= 60s
SOAKTIME ?= 10m
BENCH    ?=
PREFIX   ?= /usr/local
DESTDIR  ?=
export CGO_ENABLED ?= 0

GOBUILD = go build -trimpath -ldflags "-s -w"

.PHONY: help build install uninstall setup demo test race lint fuzz soak bench clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 10

build: ## static binaries into bin/
	$(GOBUILD) -o bin/ ./cmd/...

# mount(8) looks for its helpers in /sbin alone.
share = $(DESTDIR)$(PREFIX)/share
installed = $(DESTDIR)$(PREFIX)/bin/peel $(DESTDIR)$(PREFIX)/bin/peeld $(DESTDIR)/sbin/mount.peel \
	$(share)/bash-completion/completions/peel $(share)/zsh/site-functions/_peel \
	$(share)/fish/vendor_completions.d/peel.fish $(share)/man/man8/peel.8

install: build ## peel, peeld, mount.peel, completions and the manual page (PREFIX, DESTDIR)
	mkdir -p $(dir $(installed))
	install -m 755 bin/peel bin/peeld $(DESTDIR)$(PREFIX)/bin/
	ln -sf $(PREFIX)/bin/peel $(DESTDIR)/sbin/mount.peel
	bin/peel completion bash >$(share)/bash-completion/completions/peel
	bin/peel completion zsh >$(share)/zsh/site-functions/_peel
	bin/peel completion fish >$(share)/fish/vendor_completions.d/peel.fish
	bin/peel man >$(share)/man/man8/peel.8

uninstall: ## remove what install has installed
	rm -f $(installed)

setup: ## install the Debian packages that are missing
	@integration/setup.sh

demo: setup build ## mount a Debian image over a slow link, beside a full pull
	cd integration && go run ./demo

test: setup build ## all tests: units, and real registries and images
	go test ./...
	PEEL_TEST_DRIVER=erofs go test ./fs
	PEEL_TEST_DRIVER=loop go test ./fs
	cd integration && go test -count=1 -p 1 -timeout 20m ./...

race: export CGO_ENABLED = 1
race: setup ## the unit tests under the race detector
	go test -race ./...
	cd integration && go test -race ./cache ./compare ./faults ./link ./mounts ./process

lint: setup ## gofmt, go vet, staticcheck, errcheck, shellcheck
	integration/lint.sh

fuzz: ## every fuzz target for FUZZTIME (60s)
	integration/fuzz.sh $(FUZZTIME)

soak: setup build ## random reads, faults and kills for SOAKTIME (10m), all drivers at once
	cd integration && PEEL_SOAK=$(SOAKTIME) go test -count=1 -v -parallel 3 -timeout $(SOAKTIME)20m -run TestSoak .

bench: setup build ## the figures of the README; BENCH="-run NAME -n RUNS" for some
	cd integration && go run ./bench $(BENCH)

clean: ## what build made; images and programs stay in the user's cache folder
	rm -rf bin
