# The CUDA sources compiled by g++ and run on the CPU (docs/cuda-on-cpu.md). Included by the Makefile.
#
# Everything is built three times, from the same host objects and the same emulator; the modes differ in what watches the
# kernels:
#
#      plain   nothing: fast; NaN, divergence and wrong results show
#      asan    AddressSanitizer and UBSan: accesses out of bounds, misaligned vectors
#      race    tests/cuda_on_cpu/racecheck.cc: two threads at one address without a barrier between them
#
# In $(BUILD)/cuda-on-cpu/: train_gpt_cuda_on_cpu, and for each mode a folder of test programs.

ON_CPU   := $(BUILD)/cuda-on-cpu
MODES    := plain asan race
HARNESS  := tests/cuda_on_cpu
SCHEDULES := forward reverse 1 2 3

# Why the CUDA sources cannot be run here, or nothing.
NOT_ON_CPU := $(strip $(if $(SANITIZE),a sanitizer build leaves CUDA out,\
              $(if $(TOOLKIT),,there is no CUDA toolkit (CUDA=$(CUDA)))\
              $(if $(filter x86_64,$(MACHINE)),,the harness is for x86-64)\
              $(if $(findstring clang,$(CC)),the harness is built by gcc)))

EMULATOR := $(patsubst %.cc,$(ON_CPU)/%.o,$(filter-out %/racecheck.cc %/cublaslt.cc,$(sort $(wildcard $(HARNESS)/*.cc))))
# These run in every mode and schedule; the test of the planted faults chooses them itself.
ON_CPU_TESTS := test_cuda_ptx test_ops_backends test_optimizer \
                $(patsubst $(HARNESS)/%.c,%,$(filter-out %/test_cuda_faults.c,$(sort $(wildcard $(HARNESS)/test_*.c))))
ON_CPU_PROGRAMS := $(foreach m,$(MODES),$(ON_CPU_TESTS:%=$(ON_CPU)/$(m)/%) $(ON_CPU)/$(m)/cuda_faults) \
                   $(ON_CPU)/test_cuda_faults $(ON_CPU)/train_gpt_cuda_on_cpu

ON_CPU_INCLUDES := -I. -I$(HARNESS)/shim -isystem $(TOOLKIT)/include -D_GNU_SOURCE
ON_CPU_CXXFLAGS := -std=c++17 -g -O2 $(ARCHFLAG) -Wall -Wextra -Wno-unknown-pragmas -Werror
# Kernels see each other's memory through pointers of any type. gcc merges equal functions of differently sized objects, and then
# warns of the smaller one's bounds.
KERNEL_CXXFLAGS := -DCUDA_ON_CPU -fno-strict-aliasing -fno-ipa-icf $(FLOATING)
ON_CPU_LIBS := $(GEMM_LIBS) -llapacke -lopenblas -lcjson -L$(TOOLKIT)/lib64 -Wl,-rpath,$(TOOLKIT)/lib64 -lcublasLt \
               -lcmocka -ldl -lm

SANITIZE_asan := -fsanitize=address -fsanitize=undefined -fno-sanitize-recover=undefined
# The functions that the compiler calls for it are racecheck.cc's; the library that goes with the flag is not linked.
SANITIZE_race := -fsanitize=thread

$(ON_CPU)/%.o: %.cc $(ON_CPU)/flags
	@mkdir -p $(@D)
	@echo 'compile $<'
	$(QUIET)$(CXX) $(ON_CPU_CXXFLAGS) $(ON_CPU_INCLUDES) -MMD -MP -c -o $@ $<

$(ON_CPU)/%.o: %.c $(ON_CPU)/flags
	@mkdir -p $(@D)
	@echo 'compile $<'
	$(QUIET)$(CC) $(CPPFLAGS) $(CFLAGS) -isystem $(TOOLKIT)/include -MMD -MP -c -o $@ $<

$(ON_CPU)/flags: FORCE
	@mkdir -p $(@D)
	@echo '$(COMMANDS) $(CXX) $(ON_CPU_CXXFLAGS) $(ON_CPU_INCLUDES) $(KERNEL_CXXFLAGS) $(ON_CPU_LIBS)' | cmp -s - $@ || \
	    echo '$(COMMANDS) $(CXX) $(ON_CPU_CXXFLAGS) $(ON_CPU_INCLUDES) $(KERNEL_CXXFLAGS) $(ON_CPU_LIBS)' >$@

# $(1): the mode
define MODE_RULES
DEVICE_$(1) := $$(CUDA_SOURCES:%.cu=$(ON_CPU)/$(1)/%.o) $(patsubst %.cc,$(ON_CPU)/$(1)/%.o,$(wildcard $(HARNESS)/cublaslt.cc)) \
               $$(EMULATOR) $(if $(filter race,$(1)),$(ON_CPU)/$(HARNESS)/racecheck.o)
# Objects first: make lists the prerequisites of the rule with the recipe, the libraries, before the others.
LINK_$(1) = $$(QUIET)$$(CXX) -fopenmp $(if $(filter asan,$(1)),$(SANITIZE_asan)) -o $$@ $$(filter %.o,$$^) $$(filter %.a,$$^) $$(ON_CPU_LIBS)

$(ON_CPU)/$(1)/%.o: %.cu $(ON_CPU)/flags
	@mkdir -p $$(@D)
	@echo 'compile $$< for the CPU, $(1)'
	$$(QUIET)$$(CXX) $$(ON_CPU_CXXFLAGS) $$(KERNEL_CXXFLAGS) $(SANITIZE_$(1)) $$(ON_CPU_INCLUDES) -MMD -MP -x c++ -c -o $$@ $$<

$(ON_CPU)/$(1)/%.o: %.cc $(ON_CPU)/flags
	@mkdir -p $$(@D)
	@echo 'compile $$<, $(1)'
	$$(QUIET)$$(CXX) $$(ON_CPU_CXXFLAGS) $$(KERNEL_CXXFLAGS) $(if $(filter asan,$(1)),$(SANITIZE_asan)) $$(ON_CPU_INCLUDES) \
	    -MMD -MP -c -o $$@ $$<

$(ON_CPU)/$(1)/test_ops_backends: $(BUILD)/tests/device/test_ops_backends.o
$(ON_CPU)/$(1)/test_optimizer: $(BUILD)/tests/optim/test_optimizer.o
$(ON_CPU)/$(1)/test_ops_backends $(ON_CPU)/$(1)/test_optimizer: $$(DEVICE_$(1)) $(BUILD)/lib/support.a $(HOST_LIBRARIES)
	@echo 'link    $$@'
	$$(LINK_$(1))

$(ON_CPU)/$(1)/test_%: $(ON_CPU)/$(HARNESS)/test_%.o $$(DEVICE_$(1)) $(BUILD)/lib/support.a $(HOST_LIBRARIES)
	@echo 'link    $$@'
	$$(LINK_$(1))

# Kernels of the harness's own, without the backend.
$(ON_CPU)/$(1)/cuda_faults: $(ON_CPU)/$(1)/$(HARNESS)/faults/faults.o
$(ON_CPU)/$(1)/test_cuda_ptx: $(ON_CPU)/$(1)/$(HARNESS)/test_cuda_ptx.o
$(ON_CPU)/$(1)/cuda_faults $(ON_CPU)/$(1)/test_cuda_ptx: $$(EMULATOR) \
                                                        $(if $(filter race,$(1)),$(ON_CPU)/$(HARNESS)/racecheck.o)
	@echo 'link    $$@'
	$$(QUIET)$$(CXX) $(if $(filter asan,$(1)),$(SANITIZE_asan)) -o $$@ $$^ -lcmocka
endef
$(foreach m,$(MODES),$(eval $(call MODE_RULES,$(m))))

$(ON_CPU)/train_gpt_cuda_on_cpu: $(BUILD)/train_gpt.o $(DEVICE_plain) $(HOST_LIBRARIES)
	@echo 'link    $@'
	$(LINK_plain)

$(ON_CPU)/test_cuda_faults: $(ON_CPU)/$(HARNESS)/test_cuda_faults.o
	@echo 'link    $@'
	$(QUIET)$(CC) -o $@ $^ -lcmocka

ifeq ($(NOT_ON_CPU),)
cuda-on-cpu: $(ON_CPU_PROGRAMS)
# Arguments of scripts/run_tests.sh. Protected memory costs little where the host seldom waits: not in tests of single ops.
ON_CPU_RUNS := $(ON_CPU)/test_cuda_faults \
               CUDA_ON_CPU_PROTECT=1 CUDA_ON_CPU_ORDER=forward $(ON_CPU)/plain/test_cuda_training \
               CUDA_ON_CPU_PROTECT=0 CUDA_ON_CPU_ORDER=forward \
               $(patsubst %,$(ON_CPU)/plain/%,$(filter-out test_cuda_training,$(ON_CPU_TESTS))) \
               $(foreach s,$(filter-out forward,$(SCHEDULES)),CUDA_ON_CPU_ORDER=$(s) $(ON_CPU_TESTS:%=$(ON_CPU)/plain/%)) \
               CUDA_ON_CPU_ORDER=forward $(ON_CPU_TESTS:%=$(ON_CPU)/asan/%) $(ON_CPU_TESTS:%=$(ON_CPU)/race/%)
else
cuda-on-cpu:
	@echo 'the CUDA sources are not run on the CPU: $(NOT_ON_CPU)'
endif

# How to run the harness alone: make test-cuda-on-cpu
test-cuda-on-cpu: cuda-on-cpu
	$(if $(ON_CPU_RUNS),@scripts/run_tests.sh $(ON_CPU_RUNS))

.PHONY: cuda-on-cpu test-cuda-on-cpu
-include $(wildcard $(ON_CPU)/$(HARNESS)/*.d $(foreach m,$(MODES),$(ON_CPU)/$(m)/cuda/*.d $(ON_CPU)/$(m)/$(HARNESS)/*.d \
                                                            $(ON_CPU)/$(m)/$(HARNESS)/faults/*.d))
