# train_gpt: build, set-up, tests, and the README's commands. `make help` lists the targets.
#
# build/ mirrors the sources. Variables a user may set:
#   CC=gcc|clang   ARCH=native|x86-64-v3|...   GEMM=onednn|cblas   BUILD=folder   V=1 shows the commands
#   CUDA=auto|0|folder of a CUDA toolkit (auto: where nvcc is, in the PATH or /usr/local/cuda)
#   SANITIZE=1, DEBUG=1, FUZZ=1: builds without CUDA, each in a folder of its own
#
# `make quickstart` and `make test` install what is missing first (scripts/setup.sh) and then call make again, so that
# the choices below are made with everything in place. Plain `make` installs nothing.

ifeq ($(origin CC),default)
CC       := gcc
endif
ifeq ($(origin CXX),default)
CXX      := g++
endif
ARCH     ?= native
VARIANT  := $(if $(SANITIZE),sanitize,$(if $(DEBUG),debug,$(if $(FUZZ),fuzz)))
BUILD    ?= build$(VARIANT:%=/%)
JOBS     ?= $(shell nproc)

# ---- the CUDA toolkit, if there is one. Sanitizers leave the backend out: its host compiler's flags are not ours.

CUDA     ?= auto
ifeq ($(CUDA),auto)
NVCC     := $(firstword $(shell command -v nvcc) $(wildcard /usr/local/cuda/bin/nvcc))
else ifneq ($(CUDA),0)
NVCC     := $(or $(wildcard $(CUDA)/bin/nvcc),$(error CUDA=$(CUDA): there is no $(CUDA)/bin/nvcc))
endif
TOOLKIT  := $(if $(NVCC),$(patsubst %/bin/,%,$(dir $(realpath $(NVCC)))))
BUILD_CUDA := $(if $(VARIANT),,$(NVCC))

# ---- sources

# The floors, from the ground up: each may use those before it (docs/architecture.md). One library a floor, so that the
# linker checks calls as scripts/check_floors.sh checks includes.
FLOORS   := base ops ref cpu cuda device data model optim probe run train
SOURCES  := $(foreach f,$(FLOORS),$(sort $(wildcard $(f)/*.c)))
CUDA_SOURCES := $(sort $(wildcard cuda/*.cu))
TEST_SOURCES := $(sort $(wildcard $(FLOORS:%=tests/%/test_*.c)))
TESTS    := $(TEST_SOURCES:%.c=$(BUILD)/%)
FUZZERS  := $(patsubst tests/%.c,$(BUILD)/%,$(sort $(wildcard $(FLOORS:%=tests/%/fuzz_*.c))))
SUPPORT  := $(sort $(wildcard tests/*.c))
BENCH    := $(sort $(wildcard bench/*.c))
SCRIPTS  := $(sort $(wildcard scripts/*.sh)) .ci/run
FORMATTED := $(wildcard *.c *.h $(foreach d,$(FLOORS) bench tests $(FLOORS:%=tests/%) \
                $(addprefix tests/cuda_on_cpu,/ /shim/ /faults/),$(addprefix $(d)/,*.c *.h *.cc *.cu *.cuh)))

# Objects of a floor; its library; the libraries of a floor and of all below it, in the linker's order.
objects_of = $(if $(filter train,$(1)),$(BUILD)/train_gpt.o)$(if $(filter cuda,$(1)),$(if $(BUILD_CUDA),$(CUDA_SOURCES:%.cu=$(BUILD)/%.o),$(BUILD)/cuda/none.o),\
                $(patsubst %.c,$(BUILD)/%.o,$(sort $(wildcard $(1)/*.c))))
reverse    = $(if $(1),$(call reverse,$(wordlist 2,$(words $(1)),$(1))) $(firstword $(1)))
up_to      = $(if $(filter $(1),$(firstword $(2))),$(1),$(firstword $(2)) $(call up_to,$(1),$(wordlist 2,$(words $(2)),$(2))))
libraries  = $(patsubst %,$(BUILD)/lib/%.a,$(call reverse,$(call up_to,$(1),$(FLOORS))))
LIBRARIES := $(call libraries,train)
# Tests do not wait for nvcc: none.a stands in for cuda.a.
without_cuda = $(patsubst %/cuda.a,%/none.a,$(1))

# ---- flags

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
SANITIZERS := $(if $(SANITIZE)$(FUZZ),-fsanitize=address -fsanitize=undefined)
OPTIMIZE := $(if $(SANITIZERS),-O1 $(SANITIZERS) -fno-sanitize-recover=undefined -fno-omit-frame-pointer,$(if $(DEBUG),-O0,-O3)) \
            $(if $(FUZZ),-fsanitize=fuzzer-no-link -Wno-pass-failed)
# What vectorising needs and NaN survives; ISO C mode would otherwise keep gcc from fusing a * b + c.
FLOATING := -fno-math-errno -fno-trapping-math -ffp-contract=fast
CPPFLAGS += -I. -D_GNU_SOURCE -DHAVE_ONEDNN=$(if $(filter onednn,$(GEMM)),1,0)
CFLAGS   += -std=c11 -g $(OPTIMIZE) $(ARCHFLAG) -fopenmp $(FLOATING) $(WARNINGS)
LDFLAGS  += -fopenmp $(SANITIZERS)
LDLIBS   += $(GEMM_LIBS) -llapacke -lopenblas -lcjson -lm

# Code for A100 and H100, and PTX that the driver compiles for what is newer. The CUDA runtime is linked statically;
# cublasLt, which takes 94 ms to load, is opened once a device is there.
CUDA_ARCHITECTURES := -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90 \
                      -gencode arch=compute_90,code=compute_90
NVCCFLAGS += -std=c++17 -O3 -Werror all-warnings --expt-relaxed-constexpr -I. -D_GNU_SOURCE
CUDA_RUNPATH := -Wl,-rpath,$(TOOLKIT)/lib64
CUDA_LIBS := $(if $(BUILD_CUDA),-L$(TOOLKIT)/lib64 -L$(TOOLKIT)/lib $(CUDA_RUNPATH) -lcudart_static -lstdc++ -ldl -lrt -lpthread)

QUIET    := $(if $(V),,@)
export PYTHONPYCACHEPREFIX := $(abspath $(BUILD))/pycache
COMMANDS  = $(CC) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) $(LDLIBS) \
            $(if $(BUILD_CUDA),$(NVCC) $(NVCCFLAGS) $(CUDA_ARCHITECTURES) $(CUDA_LIBS))

# ---- build

## all: build ./train_gpt (the default)
all: train_gpt

# Made anew each time: the link must follow BUILD and SANITIZE, whichever program is newer.
train_gpt: $(BUILD)/train_gpt FORCE
	@ln -sf $< $@

## debug: build build/debug/train_gpt and the tests beside it with -O0, for gdb
debug:
	@$(MAKE) --no-print-directory -j$(JOBS) DEBUG=1 programs
	@echo 'built   build/debug/train_gpt, build/debug/tests/'

programs: $(BUILD)/train_gpt $(BUILD)/bench/bench $(TESTS)

# $(1): further libraries
define LINK
	@echo 'link    $@'
	$(QUIET)$(CC) $(LDFLAGS) -o $@ $^ $(1) $(LDLIBS)
endef
define ARCHIVE
	@mkdir -p $(@D)
	$(QUIET)rm -f $@ && $(AR) rcs $@ $^
endef

$(BUILD)/train_gpt: $(BUILD)/main.o $(LIBRARIES)
	$(call LINK,$(CUDA_LIBS))

$(BUILD)/bench/bench: $(BENCH:%.c=$(BUILD)/%.o) $(LIBRARIES)
	$(call LINK,$(CUDA_LIBS))

# $(1): a floor
define FLOOR_RULES
$(BUILD)/lib/$(1).a: $(call objects_of,$(1))
	$$(ARCHIVE)

$(BUILD)/tests/$(1)/test_%: $(BUILD)/tests/$(1)/test_%.o $(BUILD)/lib/support.a $(call without_cuda,$(call libraries,$(1)))
	$$(call LINK,-lcmocka)

$(BUILD)/$(1)/fuzz_%: $(BUILD)/tests/$(1)/fuzz_%.o $(call without_cuda,$(call libraries,$(1)))
	$$(call LINK,-fsanitize=fuzzer)
endef
$(foreach f,$(FLOORS),$(eval $(call FLOOR_RULES,$(f))))

$(BUILD)/lib/none.a: $(BUILD)/cuda/none.o
	$(ARCHIVE)

$(BUILD)/lib/support.a: $(SUPPORT:%.c=$(BUILD)/%.o)
	$(ARCHIVE)

# The program that tests run.
$(BUILD)/tests/train_gpt: $(BUILD)/main.o $(call without_cuda,$(LIBRARIES))
	$(LINK)
$(filter $(BUILD)/tests/train/%,$(TESTS)): | $(BUILD)/tests/train_gpt

$(BUILD)/%.o: %.c $(BUILD)/flags
	@mkdir -p $(@D)
	@echo 'compile $<'
	$(QUIET)$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

$(BUILD)/cuda/%.o: cuda/%.cu $(BUILD)/flags
	@mkdir -p $(@D)
	@echo 'nvcc    $<'
	$(QUIET)$(NVCC) $(NVCCFLAGS) $(CUDA_ARCHITECTURES) -MMD -MP -MF $(@:.o=.d) -c -o $@ $<

# Changes when a command does, so that everything is compiled again. What is missing is named here, once, before
# anything is compiled.
$(BUILD)/flags: FORCE
	@mkdir -p $(@D)
	@echo '$(COMMANDS)' | cmp -s - $@ || { \
	    for header in $(REQUIRED_HEADERS); do \
	        $(PREPROCESS) -fopenmp -include $$header -x c /dev/null >/dev/null 2>&1 || { \
	            echo "$(CC) or its <$$header> is missing: 'make setup CC=$(CC)' installs it." >&2; exit 1; }; \
	    done; \
	    [ -z '$(BUILD_CUDA)' ] || command -v $(CXX) >/dev/null || { \
	        echo "$(CXX), which nvcc needs, is missing: 'make setup' installs it; CUDA=0 builds without nvcc." >&2; exit 1; }; \
	    echo '$(COMMANDS)' >$@; }

## setup: install what building and testing need (Debian, Ubuntu)
setup:
	@CC='$(CC)' scripts/setup.sh build test

# ---- tests

include tests/cuda_on_cpu/rules.mk

## test: what a change is likely to break, in minutes; T=word runs the programs with that in their names
test:
	@CC='$(CC)' scripts/setup.sh build test
	@$(MAKE) --no-print-directory -j$(JOBS) run-tests

# What is run: programs, and settings of those after them (scripts/run_tests.sh).
programs_of = $(foreach r,$(1),$(if $(findstring =,$(r)),,$(r)))
RUNS     := $(TESTS) $(ON_CPU_RUNS)
CHOSEN   := $(if $(T),$(foreach r,$(RUNS),$(if $(findstring =,$(r))$(findstring $(T),$(notdir $(r))),$(r))),$(RUNS))
run-tests: $(call programs_of,$(CHOSEN))
	$(if $(T)$(ON_CPU_RUNS),,@echo 'the CUDA sources are not run on the CPU: $(NOT_ON_CPU)')
	@scripts/run_tests.sh $(CHOSEN)

## test-all: test, test-modes, test-sanitize and fuzz, one after the other
test-all:
	@for target in test test-modes test-sanitize fuzz; do $(MAKE) --no-print-directory $$target || exit 1; done

## test-modes: the emulated device in every mode and schedule, and the tests of a program with the CUDA backend in it
test-modes:
	@CC='$(CC)' scripts/setup.sh build test
	@$(MAKE) --no-print-directory -j$(JOBS) run-modes

CUDA_TESTS := $(if $(BUILD_CUDA),$(addprefix $(BUILD)/gpu/,device/test_backend train/test_roofline train/test_train_gpt))
run-modes: $(CUDA_TESTS) $(call programs_of,$(MODE_RUNS)) $(if $(MODE_RUNS),$(FAULTS))
	$(if $^,@scripts/run_tests.sh $(CUDA_TESTS) $(MODE_RUNS),@echo 'test-modes: skipped, $(NOT_ON_CPU)')

## test-sanitize: test under AddressSanitizer and UBSan
test-sanitize:
	@$(MAKE) --no-print-directory test SANITIZE=1

## fuzz: random bytes as token files and checkpoints, each for FUZZ_SECONDS (20), under the sanitizers; takes clang
FUZZ_SECONDS ?= 20
fuzz:
	@scripts/setup.sh develop
	@$(MAKE) --no-print-directory -j$(JOBS) CC=clang FUZZ=1 run-fuzzers

run-fuzzers: $(FUZZERS)
	@for fuzzer in $^; do \
	    $$fuzzer -max_len=4096 -max_total_time=$(FUZZ_SECONDS) -artifact_prefix=$(BUILD)/ >$$fuzzer.log 2>&1 || { \
	        cat $$fuzzer.log; echo "failed  $$fuzzer"; exit 1; }; \
	    echo "ok      $$fuzzer, $$(tail -n 1 $$fuzzer.log)"; \
	done

# Tests with the CUDA backend in them.
$(BUILD)/gpu/%: $(BUILD)/tests/%.o $(BUILD)/lib/support.a $(LIBRARIES)
	@mkdir -p $(@D)
	$(call LINK,-lcmocka $(CUDA_LIBS))
$(BUILD)/gpu/train_gpt: $(BUILD)/train_gpt
	@mkdir -p $(@D)
	@ln -f $< $@
$(BUILD)/gpu/train/test_roofline $(BUILD)/gpu/train/test_train_gpt: | $(BUILD)/gpu/train_gpt

# Needs no harness: the real device beside ref. The second program fails, rather than skips, where there is no device.
GPU_TESTS := $(BUILD)/gpu/device/test_ops_backends $(BUILD)/gpu/cuda_on_cpu/test_cuda_training

## test-gpu: on a machine with a GPU, every op and 20 training steps of it beside ref
test-gpu: $(GPU_TESTS)
	@scripts/run_tests.sh $(GPU_TESTS)

# ---- checks

## check: formatting, floors, calls and links, scripts
check:
	@scripts/setup.sh develop
	@clang-format --dry-run -Werror $(FORMATTED)
	@shellcheck $(SCRIPTS)
	@python3 -m compileall -q scripts tests
	@python3 scripts/cuda_gate --self-test
	@$(MAKE) --no-print-directory -j$(JOBS) floors

## floors: no floor includes, calls or needs for its link what is not below it, and no two objects call each other
floors: $(LIBRARIES) $(FLOORS:%=$(BUILD)/links/%)
	@scripts/check_floors.sh $(BUILD)

# A floor's whole library and the libraries below it leave no symbol undefined.
below = $(filter $(FLOORS),$(shell scripts/check_floors.sh --below $(1)))
define LINK_RULE
$(BUILD)/links/$(1): $(BUILD)/links/main.o $(call libraries,$(1))
	$(QUIET)$(CC) $(LDFLAGS) -o $$@ $$< -Wl,--whole-archive $(BUILD)/lib/$(1).a -Wl,--no-whole-archive \
	    $$(patsubst %,$(BUILD)/lib/%.a,$$(call reverse,$$(call below,$(1)))) $(CUDA_LIBS) $(LDLIBS)
endef
$(foreach f,$(FLOORS),$(eval $(call LINK_RULE,$(f))))

$(BUILD)/links/main.o:
	@mkdir -p $(@D)
	@echo 'int main(void) { return 0; }' | $(CC) -x c -c -o $@ -

## format: clang-format on all C, C++ and CUDA sources
format:
	clang-format -i $(FORMATTED)

## cuda-gate: what nvcc makes of the kernels: registers, instructions, occupancy, and whether a test launches each
LAUNCHES := $(ON_CPU)/launches.step $(ON_CPU)/launches.tests
ifeq ($(NOT_ON_CPU),)
cuda-gate: $(LAUNCHES)
	@python3 scripts/cuda_gate --nvcc '$(NVCC)' --flags '$(NVCCFLAGS)' --build $(BUILD)/cuda-gate --launches $(LAUNCHES) \
	    --sources $(CUDA_SOURCES)
else
cuda-gate:
	@echo 'cuda-gate: skipped, $(NOT_ON_CPU)'
endif

# What is launched in a step of GPT-2's width and context, which nothing computes; the tests launch the other kernels.
$(ON_CPU)/launches.step: $(ON_CPU)/train_gpt_cuda_on_cpu
	@echo 'launches of a training step'
	@rm -f $@.part
	$(QUIET)for preset in gpt2 llama; do \
	    CUDA_ON_CPU_LAUNCHES=$@.part CUDA_ON_CPU_LAUNCHES_ONLY=1 $< device=cuda precision=bf16 name=launches \
	        runs_dir=$(ON_CPU)/runs model.preset=$$preset model.layers=1 model.width=768 model.heads=12 model.kv_heads=12 \
	        model.context=1024 model.vocab=4096 train.batch=1 train.micro_batch=1 train.steps=1 checkpoint.every=0 \
	        >$@.log 2>&1 || { cat $@.log; exit 1; }; \
	done
	@mv $@.part $@

$(ON_CPU)/launches.tests: $(ON_CPU)/plain/test_ops_backends $(ON_CPU)/plain/test_cuda_gemm
	@echo 'launches of the tests of the ops'
	@rm -f $@.part
	$(QUIET)for test in $^; do CUDA_ON_CPU_LAUNCHES=$@.part $$test >$@.log 2>&1 || { cat $@.log; exit 1; }; done
	@mv $@.part $@

# ---- the README's commands

## quickstart: set up, build, get a text, train on it for a few minutes, sample (CORPUS=file for your own text)
quickstart:
	@CC='$(CC)' scripts/quickstart.sh

## compare: train AdamW and Muon on the same text and make a page of plots (CORPUS=file for your own text)
compare:
	@CC='$(CC)' scripts/compare.sh

## lab: train a small model with every optimizer, all measurements on, and draw them (OPTIMIZERS='muon lion' for some)
lab:
	@CC='$(CC)' scripts/lab.sh

## bench: measure speed and memory against what the machine can do, for some minutes (ROWS="baby gemm" for a part)
bench: $(BUILD)/train_gpt $(BUILD)/bench/bench
	@$(BUILD)/bench/bench $(ROWS) --program $(BUILD)/train_gpt --json $(BUILD)/bench/results.jsonl

# With AMX a processor's ceiling in bf16 is five times higher, and small models reach less of it.
RATIOS   ?= bench/ratios$(if $(shell grep -m 1 -o amx_bf16 /proc/cpuinfo 2>/dev/null),-amx).json
## bench-check: measure for a minute and compare with the stored ratios of such a processor (RATIOS=file)
bench-check: $(BUILD)/bench/bench
	@$(BUILD)/bench/bench quick --check $(RATIOS)

## bench-gpu: tokens/s and MFU on the GPU, configuration by configuration, beside their prediction
bench-gpu: $(BUILD)/bench/bench
	@$(BUILD)/bench/bench gpu --json $(BUILD)/bench/gpu.jsonl

## clean: remove what was built (runs and datasets stay)
clean:
	rm -rf build train_gpt

## help: this list
help:
	@sed -n 's/^## //p' $(firstword $(MAKEFILE_LIST)) | sort

FORCE:
.PHONY: all debug programs setup test run-tests test-all test-modes run-modes test-sanitize fuzz run-fuzzers test-gpu \
        check floors format cuda-gate quickstart compare lab bench bench-check bench-gpu clean help FORCE
.SECONDARY:
-include $(patsubst %.c,$(BUILD)/%.d,$(SOURCES) $(wildcard *.c) $(TEST_SOURCES) $(SUPPORT) $(BENCH)) $(CUDA_SOURCES:%.cu=$(BUILD)/%.d)
