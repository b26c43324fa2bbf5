# train_gpt: build, set-up, tests, and the README's commands. `make help` lists the targets.
#
# build/ mirrors the sources. Variables a user may set:
#   CC=gcc|clang   ARCH=native|x86-64-v3|...   GEMM=onednn|cblas   SANITIZE=1   BUILD=folder   V=1 shows the commands
#   CUDA=auto|0|folder of a CUDA toolkit (auto: where nvcc is, in the PATH or /usr/local/cuda)
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
SANITIZE ?=
BUILD    ?= $(if $(SANITIZE),build/sanitize,build)
JOBS     ?= $(shell nproc)

# The CUDA toolkit, if there is one. A sanitizer build leaves the backend out: its host compiler's flags are not ours.
CUDA     ?= auto
ifeq ($(CUDA),auto)
NVCC     := $(firstword $(shell command -v nvcc) $(wildcard /usr/local/cuda/bin/nvcc))
else ifneq ($(CUDA),0)
NVCC     := $(or $(wildcard $(CUDA)/bin/nvcc),$(error CUDA=$(CUDA): there is no $(CUDA)/bin/nvcc))
endif
TOOLKIT  := $(if $(NVCC),$(patsubst %/bin/,%,$(dir $(realpath $(NVCC)))))
BUILD_CUDA := $(if $(SANITIZE),,$(NVCC))

# The floors, from the ground up: each may use those before it (docs/architecture.md). One library a floor, so that the
# linker checks calls as scripts/check_floors.sh checks includes.
FLOORS   := base ops ref cpu cuda device data model optim probe run train
SOURCES  := $(foreach f,$(FLOORS),$(sort $(wildcard $(f)/*.c)))
CUDA_SOURCES := $(sort $(wildcard cuda/*.cu))
TEST_SOURCES := $(sort $(wildcard $(FLOORS:%=tests/%/test_*.c)))
TESTS    := $(TEST_SOURCES:%.c=$(BUILD)/%)
SUPPORT  := $(sort $(wildcard tests/*.c))
BENCH    := $(sort $(wildcard bench/*.c))
FORMATTED := $(wildcard *.c *.h $(foreach d,$(FLOORS) bench tests $(FLOORS:%=tests/%) \
                $(addprefix tests/cuda_on_cpu,/ /shim/ /faults/),$(addprefix $(d)/,*.c *.h *.cc *.cu *.cuh)))

# Objects of a floor; its library; the libraries of a floor and of all below it, in the linker's order.
objects_of = $(if $(filter train,$(1)),$(BUILD)/train_gpt.o)$(if $(filter cuda,$(1)),$(if $(BUILD_CUDA),$(CUDA_SOURCES:%.cu=$(BUILD)/%.o),$(BUILD)/cuda/none.o),\
                $(patsubst %.c,$(BUILD)/%.o,$(sort $(wildcard $(1)/*.c))))
reverse    = $(if $(1),$(call reverse,$(wordlist 2,$(words $(1)),$(1))) $(firstword $(1)))
up_to      = $(if $(filter $(1),$(firstword $(2))),$(1),$(firstword $(2)) $(call up_to,$(1),$(wordlist 2,$(words $(2)),$(2))))
libraries  = $(patsubst %,$(BUILD)/lib/%.a,$(call reverse,$(call up_to,$(1),$(FLOORS))))
LIBRARIES  := $(call libraries,train)
HOST_LIBRARIES := $(filter-out %/cuda.a,$(LIBRARIES))
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
# The CUDA runtime is linked statically; cublasLt, which takes 94 ms to load, is opened once a device is there.
CUDA_RUNPATH := -Wl,-rpath,$(TOOLKIT)/lib64
CUDA_LIBS := $(if $(BUILD_CUDA),-L$(TOOLKIT)/lib64 -L$(TOOLKIT)/lib $(CUDA_RUNPATH) -lcudart_static -lstdc++ -ldl -lrt -lpthread)
LDLIBS   += $(GEMM_LIBS) -llapacke -lopenblas -lcjson $(CUDA_LIBS) -lm

# Code for A100 and H100, and PTX that the driver compiles for what is newer.
CUDA_ARCHITECTURES := -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90 \
                      -gencode arch=compute_90,code=compute_90
NVCCFLAGS += -std=c++17 -O3 -Werror all-warnings --expt-relaxed-constexpr -I. -D_GNU_SOURCE
QUIET    := $(if $(V),,@)
COMMANDS  = $(CC) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) $(LDLIBS) $(if $(BUILD_CUDA),$(NVCC) $(NVCCFLAGS) $(CUDA_ARCHITECTURES))

## all: build ./train_gpt (the default)
all: train_gpt

# Made anew each time: the link must follow BUILD and SANITIZE, whichever program is newer.
train_gpt: $(BUILD)/train_gpt FORCE
	@ln -sf $< $@

$(BUILD)/train_gpt: $(BUILD)/main.o $(LIBRARIES)
	@echo 'link    $@'
	$(QUIET)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)

# $(1): a floor
define FLOOR_RULES
$(BUILD)/lib/$(1).a: $(call objects_of,$(1))
	@mkdir -p $$(@D)
	$$(QUIET)rm -f $$@ && $$(AR) rcs $$@ $$^

$(BUILD)/tests/$(1)/test_%: $(BUILD)/tests/$(1)/test_%.o $(BUILD)/lib/support.a $(call libraries,$(1))
	@echo 'link    $$@'
	$$(QUIET)$$(CC) $$(LDFLAGS) -o $$@ $$^ -lcmocka $$(LDLIBS)
endef
$(foreach f,$(FLOORS),$(eval $(call FLOOR_RULES,$(f))))

$(BUILD)/lib/support.a: $(SUPPORT:%.c=$(BUILD)/%.o)
	@mkdir -p $(@D)
	$(QUIET)rm -f $@ && $(AR) rcs $@ $^

$(BUILD)/bench/bench: $(BENCH:%.c=$(BUILD)/%.o) $(LIBRARIES)
	@echo 'link    $@'
	$(QUIET)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)

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

## test: set up, build, run every test program
test:
	@CC='$(CC)' scripts/setup.sh build test
	@$(MAKE) --no-print-directory -j$(JOBS) run-tests

programs: $(BUILD)/train_gpt $(BUILD)/bench/bench $(TESTS)

run-tests: programs cuda-on-cpu
	@scripts/run_tests.sh $(TESTS) $(ON_CPU_RUNS)

## test-sanitize: the same under AddressSanitizer and UBSan
test-sanitize:
	@$(MAKE) --no-print-directory test SANITIZE=1

## cuda-on-cpu: build the CUDA sources for the CPU, to test them without a GPU (test-cuda-on-cpu runs those tests alone)
include tests/cuda_on_cpu/rules.mk

## cuda-gate: check what nvcc makes of the kernels: registers, instructions, docs/cuda-kernels.md (WRITE=1 writes that)
LAUNCHES := $(ON_CPU)/launches.step $(ON_CPU)/launches.tests
ifeq ($(NOT_ON_CPU),)
cuda-gate: $(LAUNCHES)
	@scripts/cuda_gate.py --nvcc '$(NVCC)' --flags '$(NVCCFLAGS)' --build $(BUILD)/cuda-gate --launches $(LAUNCHES) \
	    $(if $(WRITE),--write) --sources $(CUDA_SOURCES)
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

# Needs no harness: the real device beside ref. The second program fails, rather than skips, where there is no device.
GPU_TESTS := $(BUILD)/tests/device/test_ops_backends $(BUILD)/tests/cuda_on_cpu/test_cuda_training

$(BUILD)/tests/cuda_on_cpu/test_%: $(BUILD)/tests/cuda_on_cpu/test_%.o $(BUILD)/lib/support.a $(LIBRARIES)
	@echo 'link    $@'
	$(QUIET)$(CC) $(LDFLAGS) -o $@ $^ -lcmocka $(LDLIBS)

## test-gpu: on a machine with a GPU, every op and 20 training steps of it beside ref
test-gpu: $(GPU_TESTS)
	@scripts/run_tests.sh $(GPU_TESTS)

## bench-gpu: tokens/s and MFU on the GPU, configuration by configuration, beside their prediction
bench-gpu: $(BUILD)/bench/bench
	@$(BUILD)/bench/bench gpu --json $(BUILD)/bench/gpu.jsonl

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

## bench-check: measure for a minute and compare with the ratios in bench/ratios.json
bench-check: $(BUILD)/bench/bench
	@$(BUILD)/bench/bench quick --check bench/ratios.json

## check: formatting, include direction, scripts
check:
	@scripts/setup.sh develop
	@clang-format --dry-run -Werror $(FORMATTED)
	@scripts/check_floors.sh
	@shellcheck $(SCRIPTS)
	@PYTHONPYCACHEPREFIX=$(BUILD)/pycache python3 -m py_compile $(wildcard scripts/*.py tests/*/*.py)
	@scripts/cuda_gate.py --self-test

## format: clang-format on all C, C++ and CUDA sources
format:
	clang-format -i $(FORMATTED)

## clean: remove what was built (runs and datasets stay)
clean:
	rm -rf build train_gpt

## help: this list
help:
	@sed -n 's/^## //p' $(firstword $(MAKEFILE_LIST)) | sort

FORCE:
.PHONY: all setup programs test run-tests test-sanitize cuda-gate quickstart compare lab bench bench-check test-gpu bench-gpu check format clean help FORCE
.SECONDARY:
-include $(patsubst %.c,$(BUILD)/%.d,$(SOURCES) $(wildcard *.c) $(TEST_SOURCES) $(SUPPORT) $(BENCH)) $(CUDA_SOURCES:%.cu=$(BUILD)/%.d)
