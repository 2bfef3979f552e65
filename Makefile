# vmcore-split: `make help` lists what there is.

PREFIX = /usr/local
LAB = .lab
LAB_VMX = .lab-vmx
LAB_QEMU = .lab-qemu
LAB_KERNELS = .lab-kernels
SCENARIOS =
CASES =
KERNEL =
SERIES =
TIME = 60
RUNS = 1000
DUMPS =

BINARY = .build/release/vmcore-split
SAMPLE = Samples/amd-host.kdump
DEMO = .build/demo
SOURCES = Package.swift Sources Tests Benchmarks Fuzz/Targets

# What the program, its tests, and the Swift toolchain itself need from Debian.
PACKAGES = \
	libbz2-dev libdeflate-dev libdw-dev libelf-dev liblz4-dev liblzo2-dev libsnappy-dev libzstd-dev zlib1g-dev \
	pkg-config \
	mandoc \
	g++ libcurl4 libncurses6 libsqlite3-0 libxml2

SWIFT_MINIMUM = 6.3

# Walking page tables, and moving pages that lie scattered, takes half the time when generic code of one module is
# specialised in another.
SWIFT_BUILD = swift build -c release --static-swift-stdlib -Xswiftc -cross-module-optimization

# Optimised, as many tests read whole dumps; in a folder of its own, as @testable needs other options
# than the program.
TEST_OPTIONS = -c release -Xswiftc -enable-testing --scratch-path .build-test

.PHONY: build static deps toolchain test coverage fuzz mutate faults bench kmod kernels lab lab-test lab-vmx lab-vmx-test lab-qemu lab-qemu-test demo install uninstall format lint clean help
.NOTPARALLEL:

build: toolchain ## build the program: .build/release/vmcore-split
	$(SWIFT_BUILD) --product vmcore-split

static: toolchain ## build it without shared libraries, for initramfs images: .build-static/release/vmcore-split
	$(SWIFT_BUILD) -Xswiftc -static-executable \
	  -Xlinker -lz -Xlinker -llzma -Xlinker -lbz2 --product vmcore-split --scratch-path .build-static

deps: ## install what is missing of the Debian packages that building and testing need
	@missing=; \
	command -v dpkg-query >/dev/null || { \
	  echo "not Debian: if the build fails, install the counterparts of: $(PACKAGES)"; exit 0; }; \
	for package in $(PACKAGES); do \
	  dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || \
	    missing="$$missing $$package"; \
	done; \
	[ -n "$$missing" ] || exit 0; \
	sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	set -ex; \
	$$sudo apt-get update -q </dev/null; \
	$$sudo env DEBIAN_FRONTEND=noninteractive \
	  apt-get install -q -y --no-install-recommends $$missing </dev/null

toolchain:
	@version=$$(swift --version | sed -n 's/.*Swift version \([0-9.]*\).*/\1/p'); \
	[ "$$(printf '%s\n' $(SWIFT_MINIMUM) "$$version" | sort -V | head -n 1)" = $(SWIFT_MINIMUM) ] || { \
	  echo "Swift $(SWIFT_MINIMUM) or newer is needed; found: $${version:-none}."; \
	  echo "Debian has no package of it: get it from https://www.swift.org/install/linux/ and"; \
	  echo "put its usr/bin into PATH."; \
	  exit 1; } >&2

test: deps toolchain ## run the tests
	swift test $(TEST_OPTIONS)
	contrib/kdump/test

# Not the test of an address space's limit: AddressSanitizer takes terabytes.  Leaks cannot be looked for where the
# program is confined.  ThreadSanitizer says nothing true, as Swift's own library, which has the locks, is not made for it.
coverage: deps toolchain ## run the tests with AddressSanitizer, and say how much of the parsers they execute
	ASAN_OPTIONS=detect_leaks=0 swift test -c release -Xswiftc -enable-testing --scratch-path .build-address \
	  --sanitize=address --enable-code-coverage --skip largeNoteAreaCostsNoMemory
	Tests/coverage .build-address

fuzz: toolchain ## fuzz each parser for TIME seconds
	Fuzz/run $(TIME)

mutate: build ## damage dumps at random, and run the program on them (RUNS=10000 DUMPS="file...")
	Fuzz/mutate --runs $(RUNS) $(DUMPS)

faults: build ## let the world fail while a guest is extracted
	Fuzz/faults

lab: ## boot hosts with guests and dump them into LAB (SCENARIOS="two kdump", KERNEL=6.12)
	KERNEL='$(KERNEL)' lab/svm/build.sh $(LAB) $(SCENARIOS)

lab-test: build ## extract every guest of the lab's dumps and compare it with the truth
	lab/test $(LAB) $(SCENARIOS)
	lab/test-qemu-core $(LAB) $(SCENARIOS)

lab-vmx: ## boot Intel hosts with guests and dump them into .lab-vmx (SCENARIOS="raw kdump", KERNEL=6.12)
	KERNEL='$(KERNEL)' lab/vmx/build.sh $(LAB_VMX) $(SCENARIOS)

lab-vmx-test: build ## the same as lab-test for the dumps of Intel hosts
	lab/vmx/test $(LAB_VMX) $(SCENARIOS)

lab-qemu: ## take cores of QEMUs of two versions into .lab-qemu (SCENARIOS="anon kvm13")
	KERNEL='$(KERNEL)' lab/qemu/build.sh $(LAB_QEMU) $(SCENARIOS)

lab-qemu-test: build ## the same as lab-test for the cores of QEMUs
	lab/qemu/test $(LAB_QEMU) $(SCENARIOS)

kernels: ## show which of the members that the program needs Debian's kernels have (SERIES="5.10 sid")
	lab/kernels/build.sh $(LAB_KERNELS) $(SERIES)

bench: build ## compare what the program costs with others, side by side (CASES="core")
	$(SWIFT_BUILD) --product bench-host
	Benchmarks/run $(CASES)

kmod: ## build the module vmcsinfo for Debian 12's kernels, and test how it measures
	kmod/build-all
	kmod/test/run

demo: deps build ## show the program at work on the sample
	rm -rf $(DEMO)
	$(BINARY) list $(SAMPLE)
	$(BINARY) registers $(SAMPLE)
	$(BINARY) $(SAMPLE) -o $(DEMO)/
	ls -ls $(DEMO)
	for vmcore in $(DEMO)/*.vmcore; do $(BINARY) check $$vmcore || exit 1; done

# Builds only if there is no build yet: as root there may be no Swift.
$(BINARY):
	$(MAKE) build

install: $(BINARY) ## install program, manual and completions below PREFIX (and DESTDIR)
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man1 \
	  $(DESTDIR)$(PREFIX)/share/bash-completion/completions \
	  $(DESTDIR)$(PREFIX)/share/zsh/site-functions \
	  $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
	install -s -m 755 $(BINARY) $(DESTDIR)$(PREFIX)/bin/vmcore-split
	install -m 644 man/vmcore-split.1 $(DESTDIR)$(PREFIX)/share/man/man1/
	$(BINARY) --generate-completion-script bash \
	  >$(DESTDIR)$(PREFIX)/share/bash-completion/completions/vmcore-split
	$(BINARY) --generate-completion-script zsh \
	  >$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_vmcore-split
	$(BINARY) --generate-completion-script fish \
	  >$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/vmcore-split.fish

uninstall: ## remove what install put there
	rm -f $(DESTDIR)$(PREFIX)/bin/vmcore-split \
	  $(DESTDIR)$(PREFIX)/share/man/man1/vmcore-split.1 \
	  $(DESTDIR)$(PREFIX)/share/bash-completion/completions/vmcore-split \
	  $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_vmcore-split \
	  $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/vmcore-split.fish

format: ## format the sources
	swift format --in-place --parallel --recursive $(SOURCES)

lint: ## complain about style, and about the manual's markup
	swift format lint --strict --parallel --recursive $(SOURCES)
	mandoc -T lint -W warning man/vmcore-split.1

clean: ## remove what the build made (not the lab's dumps)
	rm -rf .build .build-test .build-static .build-fuzz .build-address .mutate

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
