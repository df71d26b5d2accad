#!/usr/bin/env bash
# What the compiler says about the CUDA kernels, without a GPU.
#
#   scripts/gpu_report.sh BUILD_DIR CUDA_HOME
#
# BUILD_DIR/obj/llmc/ops/cuda/*.ptxas were written by `make BACKEND=cuda`.
#
# Per kernel and architecture: registers, static shared memory, local memory (spills and stack), and how many of a
# multiprocessor's 64 warps the registers leave room for (arithmetic from documented limits: 65,536 registers, dealt to
# warps in units of 256). From the PTX: 128-bit global loads and stores, tensor core and asynchronous copy instructions.
#
# The table is compared with docs/gpu_kernels.txt (UPDATE=yes writes it). Local memory in a kernel that the lines
# "allowed KERNEL BYTES REASON" of that file do not cover fails, whatever the compiler; the rest of the table is
# compared if nvcc has the version that made it.
set -eu
cd "$(dirname "$0")/.."
build=$1 cuda=$2 committed=docs/gpu_kernels.txt
sources=(llmc/ops/cuda/*.cu) bad=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
version=$("$cuda/bin/nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')

# Mangled names, one a line, become those of the source, without namespaces, parameters and blanks: fill_kernel<float>.
plain_names() {
    c++filt | sed -e 's/^void //' -e 's/(anonymous namespace):://g' -e 's/_GLOBAL__N__[A-Za-z0-9_]*:://g' \
        -e 's/llmc:://g' -e 's/__nv_bfloat16/bf16/g' -e 's/([A-Za-z ]*)\([0-9]\)/\1/g' -e 's/(.*$//' -e 's/, /,/g' \
        -e 's/ /_/g'
}
# A table whose first column is mangled gets plain names there.
plain_table() { paste -d ' ' <(cut -d ' ' -f 1 "$1" | plain_names) <(cut -d ' ' -f 2- "$1"); }

# --- ptxas: "KERNEL ARCH REGISTERS SHARED LOCAL"
for source in "${sources[@]}"; do
    log=$build/obj/${source%.cu}.ptxas
    [ -f "$log" ] || { echo "error: $log is not there: run \`make BACKEND=cuda\` first" >&2; exit 2; }
    awk '
        /Compiling entry function/ { split($0, q, "\047"); name = q[2]; arch = q[4]; sub("sm_", "", arch) }
        /bytes stack frame/ { match($0, /[0-9]+ bytes stack/); stack = substr($0, RSTART) + 0
                              match($0, /[0-9]+ bytes spill stores/); spill = substr($0, RSTART) + 0
                              match($0, /[0-9]+ bytes spill loads/); spill += substr($0, RSTART) + 0 }
        /Used [0-9]+ registers/ && name != "" {
            match($0, /Used [0-9]+/); regs = substr($0, RSTART + 5) + 0
            shared = 0; if (match($0, /[0-9]+ bytes smem/)) shared = substr($0, RSTART) + 0
            print name, arch, regs, shared, stack + spill; name = "" }' "$log"
done > "$work/mangled"
plain_table "$work/mangled" > "$work/ptxas"

# --- PTX: "KERNEL LOADS STORES MMA LDMATRIX ASYNC"
oldest=$(awk '{print $2}' "$work/ptxas" | sort -n | head -n 1)
for source in "${sources[@]}"; do
    "$cuda/bin/nvcc" -std=c++20 -O3 -I. -ptx -arch="compute_$oldest" -o "$work/ptx" "$source" 2> /dev/null
    awk '
        function out() { if (name != "") print name, loads, stores, mma, ldmatrix, async }
        /^[^\/]*\.entry / { out(); match($0, /\.entry [A-Za-z0-9_$]+/); name = substr($0, RSTART + 7, RLENGTH - 7)
                            loads = stores = mma = ldmatrix = async = 0 }
        /ld\.global[a-z.:]*\.(v4\.[bfsu]32|v2\.[bfu]64)/ { loads++ }
        /st\.global[a-z.:]*\.(v4\.[bfsu]32|v2\.[bfu]64)/ { stores++ }
        /mma\.sync/ { mma++ }
        /ldmatrix/ { ldmatrix++ }
        /cp\.async\.c[ag]/ { async++ }
        END { out() }' "$work/ptx"
done > "$work/mangled"
plain_table "$work/mangled" | sort > "$work/counts"

# --- one line a kernel
archs=$(awk '{print $2}' "$work/ptxas" | sort -nu | xargs)
{
    echo "# kernels of llmc/ops/cuda as nvcc $version compiles them;" \
        "registers / shared bytes / local bytes / warps of 64"
    printf '%-56s' kernel
    for arch in $archs; do printf ' %16s' "sm_$arch"; done
    printf ' %5s %5s %5s %5s %6s\n' ld128 st128 mma ldmat cp.asy
    while read -r kernel loads stores mma ldmatrix async; do
        printf '%-56s' "$kernel"
        for arch in $archs; do
            cell=$(awk -v k="$kernel" -v a="$arch" '$1 == k && $2 == a {
                warps = int(65536 / (int(($3 * 32 + 255) / 256) * 256))
                print $3 "/" $4 "/" $5 "/" (warps > 64 ? 64 : warps); exit }' "$work/ptxas")
            printf ' %16s' "${cell:--}"
        done
        printf ' %5d %5d %5d %5d %6d\n' "$loads" "$stores" "$mma" "$ldmatrix" "$async"
    done < "$work/counts"
} > "$work/table"
cat "$work/table"

# --- host code that calls a function for the device only: nvcc says nothing and makes it end the program
for source in "${sources[@]}"; do
    if nm -u "$build/obj/${source%.cu}.o" | grep -qw exit; then
        echo "error: host code of $source calls a __device__ function (nvcc compiled it to exit)"
        bad=1
    fi
done

# --- verdict
touch "$committed"
grep '^allowed ' "$committed" > "$work/allowed" || true
awk '$5 > 0 {print $1, $2, $5}' "$work/ptxas" | sort -u > "$work/local"
while read -r kernel arch bytes; do
    limit=$(awk -v k="$kernel" '$2 == k {print $3; exit}' "$work/allowed")
    if [ "$bytes" -gt "${limit:-0}" ]; then
        echo "error: $kernel uses $bytes bytes of local memory on sm_$arch (allowed: ${limit:-0})"
        bad=1
    fi
done < "$work/local"
if [ "${UPDATE:-}" = yes ]; then
    cat "$work/table" "$work/allowed" > "$work/new" && mv "$work/new" "$committed"
elif [ "$(head -n 1 "$committed")" = "$(head -n 1 "$work/table")" ]; then
    diff <(grep -v '^allowed ' "$committed") "$work/table" > "$work/diff" || {
        echo "error: $committed is not what nvcc $version says now;" \
            "\`make BACKEND=cuda gpu-report UPDATE=yes\` rewrites it"
        cat "$work/diff"
        bad=1
    }
else
    echo "note: $committed was made by another nvcc; only local memory was checked"
fi
exit $bad
