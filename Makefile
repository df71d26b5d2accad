# mot.cu's build. `make help` lists what can be made; scripts/detect.sh finds compiler and libraries.
#
# What a person may set: BACKEND, GEMM, COMM, GPU_ARCH, CUDA_HOME, SANITIZE, ARCH, CXX, CPPFLAGS, CXXFLAGS, LDFLAGS,
# LDLIBS, CCACHE (empty: no compiler cache), V=1 (shows commands).
# Programs are built in build/<backend>; what does not depend on the backend is compiled once, in build/common. A change
# of flags, libraries or list of sources rebuilds what it touches.
SHELL := /bin/bash
.SUFFIXES:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := all
MAKEFLAGS += --no-builtin-rules --no-print-directory

# A machine with an NVIDIA GPU and its compiler builds for it unless told otherwise.
CUDA_HOME ?= $(or $(patsubst %/bin/nvcc,%,$(realpath $(shell command -v nvcc))),/usr/local/cuda)
DEFAULT_BACKEND := $(if $(and $(wildcard /dev/nvidia0),$(wildcard $(CUDA_HOME)/bin/nvcc)),cuda,cpu)
BACKEND ?= $(DEFAULT_BACKEND)
GPU_ARCH ?=
GEMM ?=
COMM ?=
SANITIZE ?=
ifeq ($(origin CXX),default)
CXX := g++
endif
Q := $(if $(V),,@)
# What a compiler for other machines makes lies apart. Only one's own processor can be asked what it has.
TARGET := $(firstword $(subst -, ,$(shell $(CXX) -dumpmachine 2>/dev/null)))
CROSS := $(filter-out $(shell uname -m),$(TARGET))
ARCH ?= $(if $(CROSS),,native)

# --- what cannot work is refused in one sentence
ifeq ($(filter cpu cuda emu,$(BACKEND)),)
$(error BACKEND=$(BACKEND) is not a backend: choose cpu, cuda, or emu (the CUDA kernels executed on the CPU, for tests))
endif
ifneq ($(filter-out address thread,$(SANITIZE)),)
$(error SANITIZE=$(SANITIZE) is not known: choose address (ASan and UBSan together) or, for BACKEND=emu, thread (TSan))
endif
ifeq ($(SANITIZE),thread)
ifneq ($(BACKEND),emu)
$(error SANITIZE=thread is for BACKEND=emu: TSan does not know the OpenMP of the other backends)
endif
endif
ifneq ($(and $(SANITIZE),$(filter cuda,$(BACKEND))),)
$(error SANITIZE=$(SANITIZE) does not go with BACKEND=cuda: use BACKEND=emu, or compute-sanitizer on a GPU)
endif
ifeq ($(ARCH),portable)
ifneq ($(SANITIZE)$(filter-out x86_64,$(TARGET))$(findstring clang,$(CXX)),)
$(error ARCH=portable is for g++ on x86-64 without SANITIZE: choose a -march value)
endif
endif
ifneq ($(filter-out onednn openblas plain,$(GEMM)),)
$(error GEMM=$(GEMM) is not known: choose onednn, openblas or plain)
endif
ifneq ($(filter-out none mpi nccl,$(COMM)),)
$(error COMM=$(COMM) is not known: choose none (one process), mpi (CPU) or nccl (GPUs, with MPI))
endif
ifneq ($(filter cpu-nccl cuda-mpi emu-mpi,$(BACKEND)-$(COMM)),)
$(error COMM=$(COMM) does not go with BACKEND=$(BACKEND): mpi moves the memory of CPUs, nccl that of GPUs)
endif
NAN_BREAKERS := $(filter -ffast-math -Ofast -ffinite-math-only,$(CXXFLAGS))
ifneq ($(NAN_BREAKERS),)
$(error CXXFLAGS holds $(NAN_BREAKERS), which breaks the checks for NaN: leave it out)
endif
ifneq ($(filter clean,$(MAKECMDGOALS)),)
ifneq ($(words $(MAKECMDGOALS)),1)
$(error `make clean` runs on its own: call make twice)
endif
endif

# --- goals that only start scripts look for nothing; all others know the compiler and the libraries
SUFFIX := $(patsubst %,-%,$(SANITIZE:address=asan))
SUFFIX := $(SUFFIX:thread=tsan)$(CROSS:%=-%)
# ARCH=portable: any x86-64 runs the program. The kernels are compiled for each of these, and the program takes the last
# one that the processor has (llmc/ops/cpu/portable/choose.cpp).
ifeq ($(ARCH),portable)
SUFFIX := $(SUFFIX)-portable
KERNEL_PATHS := $(if $(filter cpu,$(BACKEND)),x86-64 x86-64-v3 x86-64-v4)
override ARCH := x86-64
endif
B := build/$(BACKEND)$(SUFFIX)
COMMON := build/common$(SUFFIX)
SCRIPT_GOALS := help clean deps demo lint test test-emu-full gpu-check list-kernel-tests
ifneq ($(filter-out $(SCRIPT_GOALS),$(or $(MAKECMDGOALS),all)),)
BUILDING := yes
ifneq ($(filter reconfigure,$(MAKECMDGOALS)),)
$(shell rm -f $(B)/config.mk)
endif
SHOW_TABLE := $(shell CXX='$(CXX)' CPPFLAGS='$(CPPFLAGS)' CXXFLAGS='$(CXXFLAGS)' LDFLAGS='$(LDFLAGS)' GEMM='$(GEMM)' \
    COMM='$(COMM)' CUDA_HOME='$(CUDA_HOME)' GPU_ARCH='$(GPU_ARCH)' BACKEND='$(BACKEND)' scripts/detect.sh $(B))
include $(B)/config.mk
NEED := $(MISSING) $(if $(filter tests bench bench-compare bench-scaling $(B)/test/%,$(MAKECMDGOALS)),$(MISSING_TESTS))
ifneq ($(if $(filter-out table reconfigure,$(or $(MAKECMDGOALS),all)),$(strip $(NEED))),)
$(info $(file <$(B)/table.txt))
$(error missing: $(strip $(NEED)); `make deps` installs it)
endif
ifneq ($(if $(filter-out table reconfigure,$(or $(MAKECMDGOALS),all)),$(CUDA_PROBLEM)),)
$(error $(CUDA_PROBLEM))
endif
ifneq ($(SHOW_TABLE)$(filter table reconfigure,$(MAKECMDGOALS)),)
$(info $(file <$(B)/table.txt))
endif
endif

# As many jobs as cores, fewer where memory is short (a file needs up to 1 GB), unless the user or a make above chose.
ifeq ($(MAKELEVEL)$(filter -j%,$(MAKEFLAGS)),0)
MAKEFLAGS += -j$(shell awk -v cores=$$(nproc) '/^MemAvailable/ {room = int($$2 / 1.2e6)} \
    END {print room < 1 ? 1 : cores < room ? cores : room}' /proc/meminfo)
endif

# --- flags. NaN and infinity stay meaningful: no -ffast-math.
OPTIMISE := $(if $(SANITIZE),-O1,-O3) $(if $(ARCH),-march=$(ARCH)) -fno-math-errno -fno-trapping-math -ffp-contract=fast
ifeq ($(SANITIZE),address)
SANITIZER := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
else ifeq ($(SANITIZE),thread)
SANITIZER := -fsanitize=thread -fno-omit-frame-pointer
endif
BASIC := $(CXX) -std=c++20 -g1 -Wall -Wextra $(OPENMP_FLAGS) -pthread -I. $(CPPFLAGS) $(CXXFLAGS)
COMPILE := $(BASIC) $(OPTIMISE) $(SANITIZER)
LIBRARIES := -lsimdjson -lz -lutf8proc $(MPI_LIBS)
LINK := $(CXX) $(OPENMP_FLAGS) -pthread $(SANITIZER) $(CXXFLAGS) $(LDFLAGS)

# --- sources. llmc/ops/<backend> is linked: that is the whole choice of a backend, and one gemm file that of a library.
GEMM_FILES := $(foreach g,onednn openblas plain,llmc/ops/cpu/gemm_$g.cpp)
# Of llmc/comm, COMM says what carries the bytes.
COMM_none := llmc/comm/none.cpp
COMM_mpi := llmc/comm/mpi_processes.cpp llmc/comm/mpi.cpp
COMM_nccl := llmc/comm/mpi_processes.cpp llmc/comm/nccl.cpp
OTHER_COMM := $(filter-out $(COMM_$(COMM_LIB)),$(COMM_none) $(COMM_mpi) $(COMM_nccl))
COMMON_SOURCES := $(filter-out llmc/base/version.cpp $(OTHER_COMM),$(sort $(wildcard llmc/*/*.cpp \
    llmc/model/blocks/*.cpp)))
ifeq ($(BACKEND),cpu)
BACKEND_SOURCES := $(filter-out $(filter-out %/gemm_$(GEMM_LIB).cpp,$(GEMM_FILES)),$(wildcard llmc/ops/cpu/*.cpp))
LIBRARIES += $(GEMM_LIBS)
else
BACKEND_SOURCES := $(wildcard llmc/ops/cuda/*.cu)
endif
ifeq ($(BACKEND),cuda)
# Host code of the kernels' files gets the same g++ flags. -Xptxas -v is what `make gpu-report` reads.
COMPILE_CUDA := $(CUDA_HOME)/bin/nvcc -ccbin $(CXX) -std=c++20 -O3 -lineinfo $(GPU_CODE) -Xptxas -v -I. $(NVCCFLAGS)
LIBRARIES += -L$(CUDA_HOME)/lib64 -Wl,-rpath,$(CUDA_HOME)/lib64 -lcublasLt -lcudart -ldl
else ifeq ($(BACKEND),emu)
# Kernels are compiled like everything else, and instrumented; the emulator only knows which sanitizer watches them.
EMULATOR_SOURCES := $(wildcard dev/emu/*.cpp)
CUDA_HEADERS := -isystem $(CUDA_HOME)/include
COMPILE_CUDA := $(BASIC) $(if $(SANITIZE),-O1,-O2) $(SANITIZER) $(CUDA_HEADERS) -Wno-unknown-pragmas \
    -fno-strict-aliasing
COMPILE_EMULATOR := $(BASIC) -O2 $(CUDA_HEADERS) $(if $(SANITIZE),-DEMU_$(if $(filter address,$(SANITIZE)),ASAN,TSAN))
LIBRARIES += -ldl
endif
PROGRAMS := $(basename $(wildcard train_mot.cu train_gpt.cu test_mot.cu))
TOOLS := $(basename $(notdir $(wildcard data/prepare.cpp)))
ALL_TESTS := $(basename $(notdir $(wildcard dev/test/test_*.cpp)))
# Tests of single ops: they need only llmc/base and llmc/ops. Those of the emulator itself are for BACKEND=emu.
EMULATOR_TESTS := $(filter test_emu%,$(ALL_TESTS))
KERNEL_TESTS := $(addprefix test_,activation attention embedding head matmul matmul_ragged memory moe_gates \
    moe_permute moe_route mot_ops mot_variants muon norm optimizer)
OTHER_BACKENDS := $(if $(filter emu,$(BACKEND)),,$(EMULATOR_TESTS)) \
    $(if $(filter cpu,$(BACKEND)),test_backends test_launch_gpu,$(filter test_cpu%,$(ALL_TESTS)))
TESTS := $(filter-out $(OTHER_BACKENDS),$(ALL_TESTS))
TEST_HELPERS := $(filter-out $(wildcard dev/test/test_*.cpp),$(wildcard dev/test/*.cpp))
BENCHES := $(basename $(notdir $(wildcard dev/bench/*.cpp)))
# Runs golden files, for test_mot and tests only.
GOLDEN_SOURCES := $(wildcard dev/golden/*.cpp)

# Objects of the backend's own sources lie with it, all others in build/common.
OF_BACKEND := llmc/ops/cpu/% llmc/ops/cuda/% llmc/comm/nccl% dev/emu/% dev/test/test_emu%
object = $(foreach s,$1,$(if $(filter $(OF_BACKEND),$s),$B,$(COMMON))/obj/$(basename $s).o)
path_objects = $(foreach path,$(KERNEL_PATHS),$(patsubst %.cpp,$(B)/paths/$(path)/%.o,$1))
ifdef KERNEL_PATHS
PATH_OBJECTS := $(call path_objects,$(BACKEND_SOURCES))
BACKEND_OBJECTS := $(B)/paths/kernels.o $(call object,llmc/ops/cpu/portable/choose.cpp)
else
BACKEND_OBJECTS := $(call object,$(BACKEND_SOURCES) $(EMULATOR_SOURCES))
endif
OPS_OBJECTS := $(call object,$(filter llmc/base/% llmc/ops/%,$(COMMON_SOURCES))) $(BACKEND_OBJECTS)
LIBRARY_OBJECTS := $(call object,$(COMMON_SOURCES)) $(BACKEND_OBJECTS)
TEST_HELPER_OBJECTS := $(call object,$(TEST_HELPERS))
GOLDEN_OBJECTS := $(call object,$(GOLDEN_SOURCES))
VERSION_OBJECT := $(call object,llmc/base/version.cpp)
PROGRAM_FILES := $(addprefix $(B)/,$(PROGRAMS) $(TOOLS))
filtered = $(foreach t,$1,$(if $(FILTER),$(if $(findstring $(FILTER),$t),$(B)/test/$t),$(B)/test/$t))
TEST_FILES := $(call filtered,$(TESTS))
KERNEL_TEST_FILES := $(call filtered,$(KERNEL_TESTS) $(if $(filter emu,$(BACKEND)),$(EMULATOR_TESTS)))
BENCH_FILES := $(addprefix $(B)/bench/,$(BENCHES))

# --- stamps: files whose text changes only when the flags, the libraries, the list of objects or the commit do
ifdef BUILDING
COMMIT := $(shell [ -z "$$(git rev-parse --show-cdup 2>&1)" ] && git describe --always --dirty 2>/dev/null)
COMMIT := $(or $(COMMIT),unknown commit)
same = $(and $(findstring $1,$2),$(findstring $2,$1))
stamp = $(if $(call same,$(strip $2),$(strip $(file <$1))),,$(file >$1,$(strip $2)))
$(shell mkdir -p $(COMMON))
$(call stamp,$(COMMON)/compile.flags,$(COMPILE) for processor $(CPU_ID))
$(call stamp,$(B)/cuda.flags,$(COMPILE_CUDA))
$(call stamp,$(B)/link.flags,$(LINK) $(LIBRARY_OBJECTS) $(LIBRARIES) $(LDLIBS))
$(call stamp,$(COMMON)/golden.list,$(GOLDEN_OBJECTS))
$(if $(KERNEL_PATHS),$(call stamp,$(B)/paths.list,$(PATH_OBJECTS)))
$(call stamp,$(B)/gemm.flags,$(GEMM_LIB) $(GEMM_FLAGS))
$(call stamp,$(COMMON)/mpi.flags,$(MPI_FLAGS))
$(call stamp,$(COMMON)/commit,$(COMMIT))
endif

# --- rules for files
# ccache, where it is installed, keeps objects for all checkouts of this user. Their processor is part of its key: it
# stands in compile.flags, and -march=native does not name it. nvcc's own report is worth more than a hit.
export CCACHE_EXTRAFILES := $(COMMON)/compile.flags
export CCACHE_NOHASHDIR := 1
cached = $(if $(findstring nvcc,$1),,$(CCACHE))
compile = $(eval BUILT := yes)@mkdir -p $(@D); echo "  compile $<"; $(if $(V),set -x;) $(cached) $1 -MMD -MP \
    -c -o $@ $2 $<

$(COMMON)/obj/%.o: %.cpp $(COMMON)/compile.flags
	$(call compile,$(COMPILE) $(EXTRA_FLAGS))

$(COMMON)/obj/%.o: %.cu $(COMMON)/compile.flags  # host code only: any C++ compiler takes it
	$(call compile,$(COMPILE),-x c++)

$(B)/obj/llmc/%.o: llmc/%.cpp $(COMMON)/compile.flags
	$(call compile,$(COMPILE) $(EXTRA_FLAGS))

define path_rules
$(B)/paths/$1/%.o: %.cpp $(COMMON)/compile.flags
	$$(call compile,$$(COMPILE) -march=$1 -fno-gnu-unique $$(EXTRA_FLAGS))
endef
$(foreach path,$(KERNEL_PATHS),$(eval $(call path_rules,$(path))))

$(B)/paths/kernels.o: $(PATH_OBJECTS) $(B)/paths.list scripts/join_paths.sh
	@echo "  join    $@"
	$(Q)CXX='$(CXX)' scripts/join_paths.sh $(@D) $(BACKEND_SOURCES:.cpp=.o) -- $(KERNEL_PATHS)

$(B)/obj/dev/test/%.o: dev/test/%.cpp $(B)/cuda.flags
	$(call compile,$(COMPILE_CUDA),-x c++)

$(B)/obj/dev/emu/%.o: dev/emu/%.cpp $(B)/cuda.flags
	$(call compile,$(COMPILE_EMULATOR) $(EXTRA_FLAGS))

# nvcc's report on registers, memory and spills is kept beside the object.
$(B)/obj/llmc/ops/cuda/%.o: llmc/ops/cuda/%.cu $(B)/cuda.flags
ifeq ($(BACKEND),cuda)
	$(call compile,$(COMPILE_CUDA) -MF $(@:.o=.d) -MT $@) > $(@:.o=.ptxas) 2>&1 || \
	    { grep -v '^ptxas info\|bytes stack frame' $(@:.o=.ptxas); false; }
else
	$(call compile,$(COMPILE_CUDA),-x c++)
endif

GEMM_OBJECTS := $(call object,$(GEMM_FILES)) $(call path_objects,$(GEMM_FILES))
$(GEMM_OBJECTS): EXTRA_FLAGS = $(GEMM_FLAGS)
$(GEMM_OBJECTS): $(B)/gemm.flags
$(call object,$(COMM_mpi)): EXTRA_FLAGS = $(MPI_FLAGS)
$(call object,$(COMM_mpi)): $(COMMON)/mpi.flags
$(call object,llmc/comm/nccl.cpp): EXTRA_FLAGS = -isystem $(CUDA_HOME)/include
$(VERSION_OBJECT): EXTRA_FLAGS = -DLLMC_COMMIT='"$(COMMIT)"'
$(VERSION_OBJECT): $(COMMON)/commit

# q, not r: two rooms may hold files of one name.
$(B)/libllmc.a: $(LIBRARY_OBJECTS) $(B)/link.flags
	$(Q)rm -f $@ && ar qcs $@ $(LIBRARY_OBJECTS)

$(B)/libops.a: $(OPS_OBJECTS) $(B)/link.flags
	$(Q)rm -f $@ && ar qcs $@ $(OPS_OBJECTS)

$(COMMON)/libgolden.a: $(GOLDEN_OBJECTS) $(COMMON)/golden.list
	$(Q)rm -f $@ && ar qcs $@ $(GOLDEN_OBJECTS)

# $(call link_program,OBJECTS,LIBRARIES); BUILT lets the goals say when there was nothing to do
link_program = $(eval BUILT := yes)@mkdir -p $(@D); echo "  link    $@"; $(if $(V),set -x;) \
    $(LINK) -o $@ $1 $2 $(LIBRARIES) $(LDLIBS)
LLMC := $(VERSION_OBJECT) $(B)/libllmc.a

GOLDEN :=
$(addprefix $(B)/,$(PROGRAMS)): $(B)/%: $(COMMON)/obj/%.o $(LLMC)
	$(call link_program,$<,$(GOLDEN) $(LLMC))

$(B)/test_mot: GOLDEN := $(COMMON)/libgolden.a
$(B)/test_mot: $(COMMON)/libgolden.a

$(addprefix $(B)/,$(TOOLS)): $(B)/%: $(COMMON)/obj/data/%.o $(LLMC)
	$(call link_program,$<,$(LLMC))

# A new commit alone relinks the programs, not every test and bench.
GTEST := -lgtest_main -lgtest
$(addprefix $(B)/test/,$(filter-out $(KERNEL_TESTS) $(EMULATOR_TESTS),$(TESTS))): $(B)/test/%: \
    $(COMMON)/obj/dev/test/%.o $(TEST_HELPER_OBJECTS) $(COMMON)/libgolden.a $(B)/libllmc.a | $(VERSION_OBJECT)
	$(call link_program,$< $(TEST_HELPER_OBJECTS),$(COMMON)/libgolden.a $(LLMC) $(GTEST))

# What a build without MPI does: linked first, none.cpp is what counts.
$(B)/test/test_comm_none: $(call object,$(filter-out $(COMM_$(COMM_LIB)),$(COMM_none)))
$(B)/test/test_comm_none: TEST_HELPER_OBJECTS += $(call object,$(filter-out $(COMM_$(COMM_LIB)),$(COMM_none)))

$(addprefix $(B)/test/,$(KERNEL_TESTS)): $(B)/test/%: $(COMMON)/obj/dev/test/%.o $(B)/libops.a
	$(call link_program,$<,$(B)/libops.a $(GTEST))

$(addprefix $(B)/test/,$(EMULATOR_TESTS)): $(B)/test/%: $(B)/obj/dev/test/%.o $(B)/libops.a
	$(call link_program,$<,$(B)/libops.a $(GTEST))

$(BENCH_FILES): $(B)/bench/%: $(COMMON)/obj/dev/bench/%.o $(B)/libllmc.a | $(VERSION_OBJECT)
	$(call link_program,$<,$(LLMC))

-include $(patsubst %.o,%.d,$(LIBRARY_OBJECTS) $(PATH_OBJECTS) $(TEST_HELPER_OBJECTS) $(GOLDEN_OBJECTS) \
    $(VERSION_OBJECT) $(call object,$(addsuffix .cu,$(PROGRAMS)) $(TOOLS:%=data/%.cpp) \
    $(wildcard dev/test/test_*.cpp dev/bench/*.cpp)))

# --- goals
.PHONY: all $(PROGRAMS) prepare tests kernel-tests benches table reconfigure deps demo lint tidy test test-emu-full \
    bench bench-compare bench-scaling clean gpu-report gpu-check list-kernel-tests help

# The programs in the root (and data/prepare) are links to the default backend's; nothing else ever moves them.
root_link = $(if $(filter prepare,$1),../$(B)/$1 data/$1,$(B)/$1 $1)
link_from_root = $(if $(filter build/$(DEFAULT_BACKEND),$(B)),ln -sfn $(root_link),:)
done_or_idle = $(if $(BUILT),:,echo "$1 up to date")

all: $(PROGRAM_FILES) ## the programs (default)
	@$(foreach p,$(PROGRAMS) $(TOOLS),$(call link_from_root,$p);) $(call done_or_idle,everything is)

$(PROGRAMS) $(TOOLS): %: $(B)/% ## one program: train_mot, train_gpt, test_mot, prepare (data/prepare)
	@$(call link_from_root,$@); $(call done_or_idle,$< is)

demo: ## a MoT model and its dense twin learn English side by side (LONG=1: for hours)
	@scripts/deps.sh demo
	+@$(MAKE) BACKEND=cpu all
	+@LONG='$(LONG)' scripts/demo.sh

lint: ## shell scripts, links and flags in the docs, sizes of files and functions: what needs no compiler
	@scripts/lint.sh

TIDY := $(wildcard *.cu data/*.cpp) $(COMMON_SOURCES) $(filter %.cpp,$(BACKEND_SOURCES))
tidy: ## clang-tidy over the host code, a few seconds a file (FILES="llmc/model/model.cpp ...": only these)
	@command -v clang-tidy > /dev/null || { echo 'tidy needs clang-tidy: apt-get install clang-tidy'; exit 2; }
	@printf '%s\n' $(or $(FILES),$(TIDY)) | xargs -P $$(nproc) -I{} \
	    clang-tidy --quiet {} -- -x c++ $(subst $(CXX) ,,$(BASIC)) $(OPTIMISE) $(GEMM_FLAGS) $(MPI_FLAGS)

test: ## all tests, also under sanitizers and on the emulated GPU (FILTER=word: only these; ASAN=no, GPU=no: less)
	+@FILTER='$(FILTER)' ASAN='$(ASAN)' GPU='$(GPU)' scripts/test.sh

test-emu-full: ## all kernels on the emulated GPU, at all sizes and in five schedules
	+@FILTER='$(FILTER)' ASAN='$(ASAN)' EMU=full scripts/test.sh

gpu-check: ## everything that needs a GPU: kernels, golden files, training, sanitizers, speed; writes gpu_check.json
	+@BACKEND='$(if $(filter emu,$(BACKEND)),emu,cuda)' scripts/gpu_check.sh

ifeq ($(BACKEND),cuda)
gpu-report: $(BACKEND_OBJECTS) $(B)/bench/roofline ## registers, spills, 128-bit accesses of all kernels, and floors
	@UPDATE='$(UPDATE)' scripts/gpu_report.sh $(B) $(CUDA_HOME)
	@for config in dense_medium mot_medium_32E dense_base mot_base_32E; do \
	    echo; $(B)/bench/roofline --config configs/$$config.toml --micro-batch 256; done
else
gpu-report:
	+@$(MAKE) BACKEND=cuda gpu-report
endif

bench: all $(BENCH_FILES) ## speed and memory
	+@scripts/bench.sh

bench-compare: $(B)/bench/bench_train ## against PyTorch (SIZES=tiny,medium,gpt2 KINDS=dense,mot,moe)
	+@SIZES='$(SIZES)' KINDS='$(KINDS)' SAMPLES='$(SAMPLES)' THREADS='$(THREADS)' MODES='$(MODES)' PYTHON='$(PYTHON)' \
	    scripts/bench_compare.sh $(B)

bench-scaling: $(B)/bench/bench_scaling ## how the cost of a step grows with each size (SWEEPS=T,V,... BUSY=1)
	+@SWEEPS='$(SWEEPS)' SAMPLES='$(SAMPLES)' THREADS='$(THREADS)' BUSY='$(BUSY)' scripts/bench_scaling.sh $(B)

tests: $(TEST_FILES) ## only builds the tests
	@$(call done_or_idle,the tests are)

kernel-tests: $(KERNEL_TEST_FILES)
	@$(call done_or_idle,the kernel tests are)

list-kernel-tests:
	@echo $(KERNEL_TESTS)

benches: $(BENCH_FILES) ## only builds the benchmarks
	@$(call done_or_idle,the benchmarks are)

table: ## shows which compiler and libraries were found
	@:

reconfigure: ## looks for compiler and libraries again
	@:

deps: ## installs what is missing (DEPS=no: only says what)
	@scripts/deps.sh all

clean: ## removes everything that was built
	rm -rf build train_mot train_gpt test_mot data/prepare

help: ## this list
	@echo 'make [GOAL] [NAME=VALUE]'; echo
	@sed -n -e 's/^\$$(PROGRAMS)[^#]*## /PROGRAM: ## /' -e 's/^\([A-Za-z-]*\):.* ## /\1\t/p' Makefile | \
	    while IFS=$$'\t' read -r goal text; do printf '  %-16s %s\n' "$$goal" "$$text"; done
	@echo
	@printf '  %-16s %s\n' \
	    BACKEND=NAME 'cpu, cuda, or emu: the CUDA kernels executed on the CPU, for tests' \
	    GPU_ARCH=LIST 'compute capabilities to compile for, for example "80 90"; default: 80 90 100' \
	    CUDA_HOME=DIR 'where the CUDA toolkit is, if nvcc is not in the PATH' \
	    GEMM=NAME 'insists on one library for matrix products: onednn, openblas or plain' \
	    COMM=NAME 'insists on what connects processes: none (one process), mpi (CPU) or nccl (GPUs)' \
	    ARCH=native 'any -march value, for example x86-64-v3; empty: what the compiler takes by itself' \
	    ARCH=portable 'one program for any x86-64, with kernels for AVX2 and AVX-512 (g++ 12)' \
	    SANITIZE=NAME 'address (ASan and UBSan) or, with BACKEND=emu, thread (TSan); built apart' \
	    V=1 'shows the commands; CXX, CPPFLAGS, CXXFLAGS, LDFLAGS, LDLIBS and -j work as always'
