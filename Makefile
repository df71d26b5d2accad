# mot.cu's build. `make help` lists what can be made; scripts/detect.sh finds compiler and libraries.
#
# What a person may set: BACKEND, GEMM, SANITIZE, ARCH, CXX, CPPFLAGS, CXXFLAGS, LDFLAGS, LDLIBS, V=1 (shows commands).
# Everything is built below build/<backend>. A change of flags, libraries or list of sources rebuilds what it touches.
SHELL := /bin/bash
.SUFFIXES:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := all
MAKEFLAGS += --no-builtin-rules --no-print-directory

DEFAULT_BACKEND := cpu
BACKEND ?= $(DEFAULT_BACKEND)
ARCH ?= native
GEMM ?=
SANITIZE ?=
ifeq ($(origin CXX),default)
CXX := g++
endif
Q := $(if $(V),,@)

# --- what cannot work is refused in one sentence
ifneq ($(filter cuda emu,$(BACKEND)),)
$(error BACKEND=$(BACKEND) does not exist in this version yet: the only backend is cpu)
else ifneq ($(BACKEND),cpu)
$(error BACKEND=$(BACKEND) is not a backend: the only one in this version is cpu)
endif
ifneq ($(filter-out address,$(SANITIZE)),)
$(error SANITIZE=$(SANITIZE) is not known: the only choice is SANITIZE=address, which is ASan and UBSan together)
endif
ifneq ($(filter-out onednn openblas plain,$(GEMM)),)
$(error GEMM=$(GEMM) is not known: choose onednn, openblas or plain)
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
B := build/$(BACKEND)$(if $(SANITIZE),-asan)
SCRIPT_GOALS := help clean deps demo test
ifneq ($(filter-out $(SCRIPT_GOALS),$(or $(MAKECMDGOALS),all)),)
BUILDING := yes
ifneq ($(filter reconfigure,$(MAKECMDGOALS)),)
$(shell rm -f $(B)/config.mk)
endif
SHOW_TABLE := $(shell CXX='$(CXX)' CPPFLAGS='$(CPPFLAGS)' CXXFLAGS='$(CXXFLAGS)' LDFLAGS='$(LDFLAGS)' GEMM='$(GEMM)' \
    scripts/detect.sh $(B))
include $(B)/config.mk
NEED := $(MISSING) $(if $(filter tests bench $(B)/test/%,$(MAKECMDGOALS)),$(MISSING_TESTS))
ifneq ($(if $(filter-out table reconfigure,$(or $(MAKECMDGOALS),all)),$(strip $(NEED))),)
$(info $(file <$(B)/table.txt))
$(error missing: $(strip $(NEED)); `make deps` installs it)
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
ifneq ($(SANITIZE),)
SANITIZER := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
endif
COMPILE := $(CXX) -std=c++20 $(OPTIMISE) -g1 -Wall -Wextra $(OPENMP_FLAGS) -pthread $(SANITIZER) -I. \
    $(CPPFLAGS) $(CXXFLAGS)
LIBRARIES := $(GEMM_LIBS) -lsimdjson -lz -lutf8proc
LINK := $(CXX) $(OPENMP_FLAGS) -pthread $(SANITIZER) $(CXXFLAGS) $(LDFLAGS)

# --- sources. One of the matmul files is linked: that is the whole choice of a library.
GEMM_FILES := $(foreach g,onednn openblas plain,llmc/ops/cpu/gemm_$g.cpp)
NOT_IN_LIBRARY := llmc/base/version.cpp $(filter-out %/gemm_$(GEMM_LIB).cpp,$(GEMM_FILES))
LIBRARY_SOURCES := $(filter-out $(NOT_IN_LIBRARY),$(sort $(wildcard \
    llmc/base/*.cpp llmc/data/*.cpp llmc/comm/*.cpp llmc/ops/*.cpp llmc/ops/$(BACKEND)/*.cpp \
    llmc/model/*.cpp llmc/model/blocks/*.cpp llmc/train/*.cpp)))
PROGRAMS := $(basename $(wildcard train_mot.cu train_gpt.cu test_mot.cu))
TOOLS := $(basename $(notdir $(wildcard data/prepare.cpp)))
TESTS := $(basename $(notdir $(wildcard dev/test/test_*.cpp)))
TEST_HELPERS := $(filter-out $(wildcard dev/test/test_*.cpp),$(wildcard dev/test/*.cpp))
BENCHES := $(basename $(notdir $(wildcard dev/bench/*.cpp)))

object = $(patsubst %,$(B)/obj/%.o,$(basename $1))
LIBRARY_OBJECTS := $(call object,$(LIBRARY_SOURCES))
TEST_HELPER_OBJECTS := $(call object,$(TEST_HELPERS))
VERSION_OBJECT := $(call object,llmc/base/version.cpp)
PROGRAM_FILES := $(addprefix $(B)/,$(PROGRAMS) $(TOOLS))
TEST_FILES := $(foreach t,$(TESTS),$(if $(FILTER),$(if $(findstring $(FILTER),$t),$(B)/test/$t),$(B)/test/$t))
BENCH_FILES := $(addprefix $(B)/bench/,$(BENCHES))

# --- stamps: files whose text changes only when the flags, the libraries, the list of objects or the commit do
ifdef BUILDING
COMMIT := $(shell [ -z "$$(git rev-parse --show-cdup 2>&1)" ] && git describe --always --dirty 2>/dev/null)
COMMIT := $(or $(COMMIT),unknown commit)
same = $(and $(findstring $1,$2),$(findstring $2,$1))
stamp = $(if $(call same,$(strip $2),$(strip $(file <$1))),,$(file >$1,$(strip $2)))
$(call stamp,$(B)/compile.flags,$(COMPILE) for processor $(CPU_ID))
$(call stamp,$(B)/link.flags,$(LINK) $(LIBRARY_OBJECTS) $(LIBRARIES) $(LDLIBS))
$(call stamp,$(B)/gemm.flags,$(GEMM_LIB) $(GEMM_FLAGS))
$(call stamp,$(B)/commit,$(COMMIT))
endif

# --- rules for files
$(B)/obj/%.o: %.cpp $(B)/compile.flags
	@mkdir -p $(@D); echo "  compile $<"
	$(Q)$(COMPILE) $(EXTRA_FLAGS) -MMD -MP -c -o $@ $<

$(B)/obj/%.o: %.cu $(B)/compile.flags  # host code only: any C++ compiler takes it
	@mkdir -p $(@D); echo "  compile $<"
	$(Q)$(COMPILE) -MMD -MP -c -o $@ -x c++ $<

$(call object,$(GEMM_FILES)): EXTRA_FLAGS = $(GEMM_FLAGS)
$(call object,$(GEMM_FILES)): $(B)/gemm.flags
$(VERSION_OBJECT): EXTRA_FLAGS = -DLLMC_COMMIT='"$(COMMIT)"'
$(VERSION_OBJECT): $(B)/commit

# q, not r: two rooms may hold files of one name.
$(B)/libllmc.a: $(LIBRARY_OBJECTS) $(B)/link.flags
	$(Q)rm -f $@ && ar qcs $@ $(LIBRARY_OBJECTS)

# $(call link_program,OBJECTS,LIBRARIES); BUILT lets the goals say when there was nothing to do
link_program = $(eval BUILT := yes)@mkdir -p $(@D); echo "  link    $@"; $(if $(V),set -x;) \
    $(LINK) -o $@ $1 $(VERSION_OBJECT) $(B)/libllmc.a $2 $(LIBRARIES) $(LDLIBS)

$(addprefix $(B)/,$(PROGRAMS)): $(B)/%: $(B)/obj/%.o $(VERSION_OBJECT) $(B)/libllmc.a
	$(call link_program,$<)

$(addprefix $(B)/,$(TOOLS)): $(B)/%: $(B)/obj/data/%.o $(VERSION_OBJECT) $(B)/libllmc.a
	$(call link_program,$<)

# A new commit alone relinks the programs, not every test and bench.
$(addprefix $(B)/test/,$(TESTS)): $(B)/test/%: $(B)/obj/dev/test/%.o $(TEST_HELPER_OBJECTS) $(B)/libllmc.a \
    | $(VERSION_OBJECT)
	$(call link_program,$< $(TEST_HELPER_OBJECTS),-lgtest_main -lgtest)

$(BENCH_FILES): $(B)/bench/%: $(B)/obj/dev/bench/%.o $(B)/libllmc.a | $(VERSION_OBJECT)
	$(call link_program,$<)

-include $(patsubst %.o,%.d,$(LIBRARY_OBJECTS) $(TEST_HELPER_OBJECTS) $(VERSION_OBJECT) $(call object,\
    $(addsuffix .cu,$(PROGRAMS)) $(TOOLS:%=data/%.cpp) $(wildcard dev/test/test_*.cpp dev/bench/*.cpp)))

# --- goals
.PHONY: all $(PROGRAMS) prepare tests benches table reconfigure deps demo test bench clean help

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
	+@$(MAKE) all
	+@LONG='$(LONG)' scripts/demo.sh

test: ## all tests, then all under sanitizers (FILTER=word: only tests with that word; ASAN=no: no sanitizers)
	+@FILTER='$(FILTER)' ASAN='$(ASAN)' scripts/test.sh

bench: all $(BENCH_FILES) ## speed and memory
	+@scripts/bench.sh

tests: $(TEST_FILES) ## only builds the tests
	@$(call done_or_idle,the tests are)

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
	@sed -n -e 's/^\$$(PROGRAMS)[^#]*## /PROGRAM: ## /' -e 's/^\([A-Za-z]*\):.* ## /\1\t/p' Makefile | \
	    while IFS=$$'\t' read -r goal text; do printf '  %-16s %s\n' "$$goal" "$$text"; done
	@echo
	@printf '  %-16s %s\n' \
	    BACKEND=cpu 'the only backend in this version' \
	    GEMM=NAME 'insists on one library for matrix products: onednn, openblas or plain' \
	    ARCH=native 'any -march value, for example x86-64-v3; empty: what the compiler takes by itself' \
	    SANITIZE=address 'ASan and UBSan, built apart in build/cpu-asan' \
	    V=1 'shows the commands; CXX, CPPFLAGS, CXXFLAGS, LDFLAGS, LDLIBS and -j work as always'
