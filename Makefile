# train_gpt: build, set-up, tests, and the README's commands. `make help` lists the targets.
#
# build/ mirrors the sources. Variables a user may set:
#   CC=gcc|clang   ARCH=native|x86-64-v3|...   GEMM=onednn|cblas   SANITIZE=1   BUILD=folder   V=1 shows the commands
#
# `make quickstart` and `make test` install what is missing first (scripts/setup.sh) and then call make again, so that
# the choices below are made with everything in place. Plain `make` installs nothing.

ifeq ($(origin CC),default)
CC       := gcc
endif
ARCH     ?= native
SANITIZE ?=
BUILD    ?= $(if $(SANITIZE),build/sanitize,build)
JOBS     ?= $(shell nproc)

MODULES  := core ref cpu cuda model optim probe data run
SOURCES  := $(foreach m,$(MODULES),$(sort $(wildcard $(m)/*.c)))
OBJECTS  := $(SOURCES:%.c=$(BUILD)/%.o)
TESTS    := $(patsubst %.c,$(BUILD)/%,$(sort $(wildcard tests/test_*.c)))
BENCH    := $(sort $(wildcard bench/*.c))
HEADERS  := $(wildcard $(addsuffix /*.h,$(MODULES) tests bench))
SCRIPTS  := $(sort $(wildcard scripts/*.sh)) .ci/run

PREPROCESS := $(CC) $(CPPFLAGS) -E
REQUIRED_HEADERS := omp.h cblas.h lapacke.h cjson/cJSON.h

# oneDNN is the fast matrix product; CBLAS serves where it is absent.
ifndef GEMM
GEMM     := $(shell $(PREPROCESS) -include dnnl.h -x c /dev/null >/dev/null 2>&1 && echo onednn || echo cblas)
endif
GEMM_LIBS := $(if $(filter onednn,$(GEMM)),-ldnnl)

WARNINGS := -Wall -Wextra -Wshadow -Wconversion -Wdouble-promotion -Wstrict-prototypes -Wmissing-prototypes -Wundef \
            -Wvla -Werror
MACHINE  := $(shell uname -m)
ARCHFLAG := $(if $(filter native,$(ARCH)),$(if $(filter aarch64 arm64,$(MACHINE)),-mcpu=native,-march=native),-march=$(ARCH))
SANITIZERS := $(if $(SANITIZE),-fsanitize=address -fsanitize=undefined)
OPTIMIZE := $(if $(SANITIZE),-O1 $(SANITIZERS) -fno-sanitize-recover=undefined -fno-omit-frame-pointer,-O3)
# What vectorising needs and NaN survives; ISO C mode would otherwise keep gcc from fusing a * b + c.
FLOATING := -fno-math-errno -fno-trapping-math -ffp-contract=fast
CPPFLAGS += -I. -D_GNU_SOURCE -DHAVE_ONEDNN=$(if $(filter onednn,$(GEMM)),1,0)
CFLAGS   += -std=c11 -g $(OPTIMIZE) $(ARCHFLAG) -fopenmp $(FLOATING) $(WARNINGS)
LDFLAGS  += -fopenmp $(SANITIZERS)
LDLIBS   += $(GEMM_LIBS) -llapacke -lopenblas -lcjson -lm
QUIET    := $(if $(V),,@)
COMMANDS  = $(CC) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) $(LDLIBS)

## all: build ./train_gpt (the default)
all: train_gpt

# Made anew each time: the link must follow BUILD and SANITIZE, whichever program is newer.
train_gpt: $(BUILD)/train_gpt FORCE
	@ln -sf $< $@

$(BUILD)/train_gpt: $(BUILD)/train_gpt.o $(OBJECTS)
	@echo 'link    $@'
	$(QUIET)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)

$(BUILD)/tests/test_%: $(BUILD)/tests/test_%.o $(BUILD)/tests/support.o $(OBJECTS)
	@echo 'link    $@'
	$(QUIET)$(CC) $(LDFLAGS) -o $@ $^ -lcmocka $(LDLIBS)

$(BUILD)/bench/bench: $(BENCH:%.c=$(BUILD)/%.o) $(OBJECTS)
	@echo 'link    $@'
	$(QUIET)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)

$(BUILD)/%.o: %.c $(BUILD)/flags
	@mkdir -p $(@D)
	@echo 'compile $<'
	$(QUIET)$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

# Changes when a command does, so that everything is compiled again. What is missing is named here, once, before
# anything is compiled.
$(BUILD)/flags: FORCE
	@mkdir -p $(@D)
	@echo '$(COMMANDS)' | cmp -s - $@ || { \
	    for header in $(REQUIRED_HEADERS); do \
	        $(PREPROCESS) -fopenmp -include $$header -x c /dev/null >/dev/null 2>&1 || { \
	            echo "$(CC) or its <$$header> is missing: 'make setup CC=$(CC)' installs it." >&2; exit 1; }; \
	    done; \
	    echo '$(COMMANDS)' >$@; }

## setup: install what building and testing need (Debian, Ubuntu)
setup:
	@CC='$(CC)' scripts/setup.sh build test

## test: set up, build, run every test program
test:
	@CC='$(CC)' scripts/setup.sh build test
	@$(MAKE) --no-print-directory -j$(JOBS) run-tests

programs: $(BUILD)/train_gpt $(BUILD)/bench/bench $(TESTS)

run-tests: programs
	@scripts/run_tests.sh $(TESTS)

## test-sanitize: the same under AddressSanitizer and UBSan
test-sanitize:
	@$(MAKE) --no-print-directory test SANITIZE=1

## quickstart: set up, build, get a text, train on it for a few minutes, sample (CORPUS=file for your own text)
quickstart:
	@CC='$(CC)' scripts/quickstart.sh

## compare: train AdamW and Muon on the same text and make a page of plots (CORPUS=file for your own text)
compare:
	@CC='$(CC)' scripts/compare.sh

## bench: measure speed and memory against what the machine can do, for some minutes (ROWS="baby gemm" for a part)
bench: $(BUILD)/train_gpt $(BUILD)/bench/bench
	@$(BUILD)/bench/bench $(ROWS) --program $(BUILD)/train_gpt --json $(BUILD)/bench/results.jsonl

## bench-check: measure for a minute and compare with the ratios in bench/ratios.json
bench-check: $(BUILD)/bench/bench
	@$(BUILD)/bench/bench quick --check bench/ratios.json

## check: formatting, include direction, scripts
check:
	@scripts/setup.sh develop
	@clang-format --dry-run -Werror $(SOURCES) $(HEADERS) $(BENCH) $(wildcard train_gpt.c tests/*.c)
	@scripts/check_includes.sh
	@shellcheck $(SCRIPTS)
	@PYTHONPYCACHEPREFIX=$(BUILD)/pycache python3 -m py_compile $(wildcard scripts/*.py tests/*.py)

## format: clang-format on all C sources
format:
	clang-format -i $(SOURCES) $(HEADERS) $(BENCH) $(wildcard train_gpt.c tests/*.c)

## clean: remove what was built (runs and datasets stay)
clean:
	rm -rf build train_gpt

## help: this list
help:
	@sed -n 's/^## //p' $(firstword $(MAKEFILE_LIST)) | sort

FORCE:
.PHONY: all setup programs test run-tests test-sanitize quickstart compare bench bench-check check format clean help FORCE
.SECONDARY:
-include $(OBJECTS:.o=.d) $(BUILD)/train_gpt.d $(TESTS:=.d) $(BUILD)/tests/support.d $(BENCH:%.c=$(BUILD)/%.d)
