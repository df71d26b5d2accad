#!/usr/bin/env bash
# Finds the compiler and the libraries and writes what the Makefile needs to know.
#
#   scripts/detect.sh DIR      writes DIR/config.mk (make variables) and DIR/table.txt (for people)
#
# Environment: CXX, CPPFLAGS, CXXFLAGS, LDFLAGS, GEMM (onednn, openblas or plain: insist on one matmul library), COMM
# (none, mpi or nccl: insist on what connects processes), BACKEND, CUDA_HOME, GPU_ARCH (compute capabilities, such as
# "80 90").
# Prints `searched` when it searched: the answer is kept while compiler, flags and processor stay the same and nothing
# was missing. Always exits 0: what is missing stands in MISSING (Debian packages without which nothing builds), in
# MISSING_TESTS, and in CUDA_PROBLEM (a sentence: why the asked-for backend cannot be built with the CUDA toolkit here).
# shellcheck disable=SC2086  # flags and libraries are words, to be split
set -u
out=$1
cxx=${CXX:-g++}
gemm_wish=${GEMM:-} comm_wish=${COMM:-}
backend=${BACKEND:-cpu} cuda_home=${CUDA_HOME:-/usr/local/cuda} gpu_arch=${GPU_ARCH:-}
flags="${CPPFLAGS:-} ${CXXFLAGS:-}"
link_flags=${LDFLAGS:-}

compiler=$($cxx --version 2>/dev/null | head -n 1)
cpu=$(grep -m 1 -E '^(flags|Features)' /proc/cpuinfo 2>/dev/null | cksum | cut -d ' ' -f 1)
key="$cxx | $compiler | $flags | $link_flags | $gemm_wish | $comm_wish | $backend | $cuda_home | $gpu_arch | $cpu"
key+=" | $(cksum < "$0")"
if [ -f "$out/config.mk" ] && [ -f "$out/table.txt" ] && [ "$(head -n 1 "$out/config.mk")" = "# $key" ] &&
    grep -q '^COMPLETE := yes' "$out/config.mk"; then
    exit 0
fi

mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# One preprocessor run answers which headers there are.
headers=$($cxx $flags -E -P -x c++ - 2>/dev/null <<'EOF'
#if __has_include(<CLI/CLI.hpp>)
have_cli11
#endif
#if __has_include(<nlohmann/json.hpp>)
have_json
#endif
#if __has_include(<simdjson.h>)
have_simdjson
#endif
#if __has_include(<zlib.h>)
have_zlib
#endif
#if __has_include(<utf8proc.h>)
have_utf8proc
#endif
#if __has_include(<gtest/gtest.h>)
have_gtest
#endif
EOF
)
has_header() { grep -qx "have_$1" <<< "$headers"; }
links() { echo 'int main() {}' | $cxx $flags -x c++ - -o "$work/link" $link_flags "$@" 2>/dev/null; }
# try_run SOURCE FLAGS...: compiles, links and runs a probe; its output is the answer (a version). Programs for another
# machine cannot be asked.
target=$($cxx $flags -dumpmachine 2>/dev/null)
try_run() {
    local source=$1
    shift
    $cxx $flags -x c++ - -o "$work/probe" $link_flags "$@" 2>/dev/null <<< "$source" || return
    if [ "${target%%-*}" = "$(uname -m)" ]; then "$work/probe" 2>/dev/null; else echo "for ${target%%-*}"; fi
}

# --- compiler and OpenMP
cxx20=no
echo '#include <bit>
#include <span>
typedef int pair __attribute__((vector_size(8)));
pair turned(pair x) { return __builtin_shufflevector(x, x, 1, 0); }
int main(int n, char**) { return std::has_single_bit(unsigned(n)) ? 0 : 1; }' > "$work/cxx20.cpp"
[ -n "$compiler" ] && $cxx $flags -std=c++20 -fsyntax-only "$work/cxx20.cpp" 2>/dev/null && cxx20=yes
openmp=
try_run '#include <omp.h>
int main() { return omp_get_max_threads() < 1; }' -fopenmp && openmp=-fopenmp

# --- matmul library
onednn= openblas= openblas_flags= openblas_libs=
for header in oneapi/dnnl/dnnl dnnl; do
    [ -n "$onednn" ] || onednn=$(try_run "#include <cstdio>
#if !__has_include(<$header.hpp>)
#error no C++ header
#endif
#include <$header.h>
int main() { auto v = dnnl_version(); std::printf(\"%d.%d.%d\", v->major, v->minor, v->patch); }" -ldnnl)
done
try_openblas() {  # include flags, then link flags
    openblas=$(try_run '#include <cblas.h>
#include <cstdio>
extern "C" char* openblas_get_config(void);
int main() { char name[32] = "", version[32] = "";
             std::sscanf(openblas_get_config(), "%31s %31s", name, version); std::printf("%s", version); }' $1 $2)
    [ -n "$openblas" ] && openblas_flags=$1 openblas_libs=$2
}
try_openblas "$(pkg-config --cflags openblas 2>/dev/null)" "$(pkg-config --libs openblas 2>/dev/null)" ||
    try_openblas "" -lopenblas || try_openblas -I/usr/include/openblas -lopenblas

gemm=$gemm_wish
[ -n "$gemm" ] || { [ -n "$onednn" ] && gemm=onednn; } || { [ -n "$openblas" ] && gemm=openblas; } || gemm=plain
missing=() missing_tests=() gemm_flags= gemm_libs= gemm_note=
case $gemm in
    onednn)
        gemm_text="oneDNN ${onednn:-not found}" gemm_libs=-ldnnl
        [ -n "$onednn" ] || { missing+=(libdnnl-dev) gemm_note="asked for by GEMM=onednn: install libdnnl-dev"; } ;;
    openblas)
        gemm_text="OpenBLAS ${openblas:-not found}" gemm_flags=$openblas_flags gemm_libs=$openblas_libs
        gemm_note="correct, but slower than oneDNN (libdnnl-dev)"
        [ -n "$openblas" ] || {
            missing+=(libopenblas-dev) gemm_note="asked for by GEMM=openblas: install libopenblas-dev"
        } ;;
    *)
        gemm_text="plain loops" gemm_note="many times slower than oneDNN (libdnnl-dev) or OpenBLAS (libopenblas-dev)" ;;
esac
[ "$gemm_wish" = plain ] && gemm_note="asked for by GEMM=plain; many times slower than a library"

# --- required libraries: header, link flag, Debian package, name
[ $cxx20 = yes ] || missing+=(g++)
found_libraries=() missing_libraries=()
need() {
    if has_header "$1" && { [ -z "$2" ] || links $2; }; then
        found_libraries+=("$4")
    else
        missing+=("$3") missing_libraries+=("$4")
    fi
}
need cli11 "" libcli11-dev CLI11
need json "" nlohmann-json3-dev nlohmann-json
need simdjson -lsimdjson libsimdjson-dev simdjson
need zlib -lz zlib1g-dev zlib
need utf8proc -lutf8proc libutf8proc-dev utf8proc
has_header gtest && links -lgtest_main -lgtest -pthread || missing_tests+=(libgtest-dev)

# --- processes: Open MPI; between GPUs also NCCL, of which the emulator needs only the header
mpi_flags=$(mpicc --showme:compile 2>/dev/null) mpi_libs=$(mpicc --showme:link 2>/dev/null)
mpi_libs="-Wl,--as-needed $mpi_libs -Wl,--no-as-needed"  # programs of one process should not load it
mpi=$(try_run '#define OMPI_SKIP_MPICXX
#include <mpi.h>
#include <cstdio>
int main() { int major, minor; MPI_Get_version(&major, &minor);
             std::printf("Open MPI %d.%d.%d", OMPI_MAJOR_VERSION, OMPI_MINOR_VERSION, OMPI_RELEASE_VERSION); }' \
    $mpi_flags $mpi_libs)
comm=$comm_wish nccl_libs=
[ "$backend" != cuda ] || nccl_libs="-L$cuda_home/lib64 -L$cuda_home/lib -lnccl"
nccl=$([ "$backend" != cpu ] && echo '#include <nccl.h>
int main() { int version; return ncclGetVersion(&version); }' |
    $cxx $flags -I"$cuda_home/include" -x c++ - -o "$work/nccl" ${nccl_libs:--c} $link_flags 2>/dev/null && echo yes)
if [ -z "$comm" ]; then
    comm=none
    if [ -n "$mpi" ] && [ "$backend" = cpu ]; then comm=mpi; fi
    if [ -n "$mpi" ] && [ -n "$nccl" ]; then comm=nccl; fi
fi
comm_text=$mpi comm_note=
case $comm in
    none)
        comm_text="one process" comm_note="several need Open MPI (libopenmpi-dev, openmpi-bin)"
        [ -z "$mpi" ] || [ "$backend" = cpu ] || comm_note="several GPUs need NCCL (libnccl-dev)"
        [ "$comm_wish" != none ] || comm_note="asked for by COMM=none"
        mpi_libs= ;;
    nccl)
        [ -n "$nccl" ] || missing+=(libnccl-dev)
        comm_text+=", NCCL$([ "$backend" != emu ] || echo "'s emulation")" ;;
esac
[ "$comm" = none ] || [ -n "$mpi" ] || missing+=(libopenmpi-dev openmpi-bin)
[ -n "$mpi" ] || mpi_flags= mpi_libs=
[ "$comm" = nccl ] && mpi_libs+=" ${nccl_libs}"

# --- the CUDA toolkit: its compiler for BACKEND=cuda, its headers for BACKEND=emu
nvcc_version=$("$cuda_home/bin/nvcc" --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\).*/\1/p')
has_cuda_header() { echo "#include <$1>" | $cxx $flags -I"$cuda_home/include" -fsyntax-only -x c++ - 2>/dev/null; }
at_least() { [ "$(printf '%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]; }  # VERSION MINIMUM
cuda_problem() {
    local header arch known
    for header in cuda_runtime.h cuda_bf16.h cublasLt.h nvtx3/nvToolsExt.h; do
        has_cuda_header $header || {
            echo "BACKEND=$backend needs the CUDA toolkit's header $header, not found in $cuda_home/include:" \
                "install the toolkit (12.4 or newer) or set CUDA_HOME"
            return
        }
    done
    [ "$backend" = cuda ] || {
        if [ "$(uname -m)" != x86_64 ]; then
            echo "BACKEND=emu runs on x86-64 only, this machine is $(uname -m)"
        elif ! has_cuda_header nccl.h; then
            echo "BACKEND=emu needs NCCL's header nccl.h, not found in $cuda_home/include: install NCCL (libnccl-dev)"
        fi
        return
    }
    if [ -z "$nvcc_version" ]; then
        echo "BACKEND=cuda needs nvcc, not found in $cuda_home/bin: install the CUDA toolkit or set CUDA_HOME"
    elif ! at_least "$nvcc_version" 12.4; then
        echo "BACKEND=cuda needs nvcc 12.4 or newer, $cuda_home has $nvcc_version: install a newer CUDA toolkit"
    elif ! links -L"$cuda_home/lib64" -lcublasLt -lcudart; then
        echo "BACKEND=cuda needs the libraries cublasLt and cudart, not found in $cuda_home/lib64:" \
            "install the toolkit's cuBLAS"
    else
        known=$("$cuda_home/bin/nvcc" --list-gpu-arch | sed 's/compute_//' | sort -n | awk '$1 >= 80' | xargs)
        for arch in $gpu_arch; do
            [[ " $known " == *" $arch "* ]] || {
                echo "GPU_ARCH=$gpu_arch: $arch is not one of $known," \
                    "of which nvcc $nvcc_version can compile for any, with blanks between"
                return
            }
        done
    fi
}
cuda_says= gpu_code=
[ "$backend" = cpu ] || cuda_says=$(cuda_problem)
if [ "$backend" = cuda ] && [ -z "$cuda_says" ]; then
    [ -n "$gpu_arch" ] || { gpu_arch="80 90"; at_least "$nvcc_version" 12.8 && gpu_arch+=" 100"; }
    for arch in $gpu_arch; do gpu_code+=" -gencode arch=compute_$arch,code=sm_$arch"; done
    gpu_code+=" -gencode arch=compute_$arch,code=compute_$arch"  # newer GPUs translate this by themselves
fi
nvcc=${nvcc_version:+nvcc $nvcc_version}
case $backend in
    cpu) gpu_note="not used by this build: BACKEND=cuda is for it" ;;
    emu) gpu_note="its headers; kernels are executed on the CPU, for tests" ;;
    *) gpu_note="compiling for $gpu_arch"
       at_least "${nvcc_version:-0}" 12.8 || gpu_note+="; 100 (Blackwell) needs nvcc 12.8" ;;
esac

join() { local IFS=,; local all="$*"; echo "${all//,/, }"; }
row() { printf '  %-11s %-44s %s\n' "$1" "$2" "$3"; }
# choose VALUE ROW...: one row if VALUE is not empty, else another: part, found, meaning, not found, meaning
choose() { if [ -n "$1" ]; then row "$2" "$3" "$4"; else row "$2" "$5" "$6"; fi; }
{
    row part found "what it means"
    row backend "$backend" ""
    choose "${cxx20#no}" compiler "$compiler" "" \
        "${compiler:-no $cxx}" "required: C++20 and GNU vectors, for example g++ 12 (g++)"
    case $backend in
        cpu) row matmul "$gemm_text" "$gemm_note" ;;
        cuda) row matmul cuBLASLt "" ;;
        emu) row matmul "cuBLASLt's emulation" "plain loops" ;;
    esac
    choose "$openmp" threads OpenMP "" "no OpenMP" "runs on one thread only"
    row processes "$comm_text" "$comm_note"
    choose "$nvcc" GPU "$nvcc" "$gpu_note" "no nvcc in $cuda_home" "CPU backend only"
    [ -z "$cuda_says" ] || echo "  $cuda_says"
    [ ${#found_libraries[@]} = 0 ] || row libraries "$(join "${found_libraries[@]}")" ""
    [ ${#missing_libraries[@]} = 0 ] ||
        row libraries "no $(join "${missing_libraries[@]}")" "required: \`make deps\` installs them"
    choose "${missing_tests[*]-}" tests "no GoogleTest" "\`make test\` needs it (libgtest-dev)" GoogleTest ""
} | sed 's/ *$//' > "$out/table.txt"

# A compiler cache is no part of a build: it only helps, and only if its folder can be written.
ccache=$(command -v ccache || true)
echo 'int x;' > "$work/cached.cpp"
[ -z "$ccache" ] || "$ccache" $cxx -c "$work/cached.cpp" -o "$work/cached.o" > /dev/null 2>&1 || ccache=

complete=yes
[ "${#missing[@]}${#missing_tests[@]}" = 00 ] && [ -z "$cuda_says" ] &&
    { [ -n "$gemm_wish" ] || [ "$gemm" = onednn ]; } && { [ -n "$comm_wish" ] || [ "$comm" != none ]; } || complete=no
cat > "$out/config.mk" <<EOF
# $key
COMPLETE := $complete
MISSING := ${missing[*]-}
MISSING_TESTS := ${missing_tests[*]-}
CUDA_PROBLEM := $cuda_says
GPU_CODE := $gpu_code
OPENMP_FLAGS := ${openmp:--Wno-unknown-pragmas}
GEMM_LIB := $gemm
GEMM_FLAGS := $gemm_flags
GEMM_LIBS := $gemm_libs
COMM_LIB := $comm
MPI_FLAGS := $mpi_flags
MPI_LIBS := $mpi_libs
CPU_ID := $cpu
CCACHE ?= $ccache
EOF
echo searched
