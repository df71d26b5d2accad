#!/usr/bin/env bash
# One object file from several compilations of the same sources, one for each kind of processor ("path"): what
# `make ARCH=portable` links in place of the CPU backend's objects.
#
#   scripts/join_paths.sh DIR OBJECT... -- MARCH...   joins DIR/MARCH/OBJECT... into DIR/kernels.o; CXX: the compiler
#
# C++ makes this dangerous: inline functions and templates (std::vector, str(), ...) are compiled into every object that
# uses them, and the linker keeps any one copy. If that were one with AVX-512, the program would crash elsewhere. So
# each path is linked by itself first, and all its names become local, those weak copies too, except what the backend
# defines: its ordinary functions. These get the path as a suffix, and their own names become jumps through a table.
# Whatever could still reach code of a path that was not chosen is refused here.
set -euo pipefail
dir=$1 objects=() paths=()
shift
while [ "$1" != -- ]; do objects+=("$1"); shift; done
shift
paths=("$@")
ld=$($CXX -print-prog-name=ld) nm=$($CXX -print-prog-name=nm)
objcopy=$($CXX -print-prog-name=objcopy) objdump=$($CXX -print-prog-name=objdump)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
refuse() { echo "join_paths: $1: $2" >&2; exit 1; }
defined() { "$nm" -g --defined-only "$1" | awk '{print $(NF - 1), $NF}'; }  # kind and name

suffix() { echo "${1//-/_}"; }
for path in "${paths[@]}"; do
    # Without the groups in which the compiler puts inline functions: the last link would drop all but one of a name.
    "$ld" -r --force-group-allocation -o "$work/joined.o" "${objects[@]/#/$dir/$path/}"
    defined "$work/joined.o" | awk '$1 == "T" {print $2}' | sort > "$work/$path.functions"
    [ -s "$work/$path.functions" ] || refuse "$path" "defines no function"
    cmp -s "$work/$path.functions" "$work/${paths[0]}.functions" || refuse "$path" "other functions than ${paths[0]}"
    [ -z "$(defined "$work/joined.o" | awk '$1 ~ /[BDR]/')" ] || refuse "$path" "global data"
    ! "$objdump" -h "$work/joined.o" | grep -E '\.(init_array|ctors|preinit_array)' > /dev/null ||
        refuse "$path" "runs code before main, on any processor"
    awk -v suffix="$(suffix "$path")" '{print $1, $1 "." suffix}' "$work/$path.functions" > "$work/renamed"
    "$objcopy" --keep-global-symbols="$work/$path.functions" "$work/joined.o" "$work/local.o"
    "$objcopy" --redefine-syms="$work/renamed" "$work/local.o" "$work/$path.o"
    [ "$(defined "$work/$path.o" | awk '{print $2}' | sort)" = "$(cut -d ' ' -f 2 "$work/renamed" | sort)" ] ||
        refuse "$path" "a name stayed global"
done

# The jumps, and a table of targets for each path. r11 is free where a function begins, as for the linker's own jumps.
{
    echo '.text'
    awk '{
        print ".globl " $1 "\n.type " $1 ", @function\n" $1 ":"
        print "    mov chosen_kernels(%rip), %r11\n    jmp *" 8 * (NR - 1) "(%r11)"
        print ".size " $1 ", . - " $1
    }' "$work/${paths[0]}.functions"
    echo '.section .data.rel.ro, "aw"'
    for path in "${paths[@]}"; do
        table=kernels_of_$(suffix "$path")
        printf '.balign 8\n.globl %s\n%s:\n' "$table" "$table"
        sed "s/.*/    .quad &.$(suffix "$path")/" "$work/$path.functions"
    done
    echo '.section .note.GNU-stack, "", @progbits'
} > "$work/jumps.s"
$CXX -c -o "$work/jumps.o" "$work/jumps.s"
paths=("${paths[@]/#/$work/}")
"$ld" -r -o "$dir/kernels.o" "$work/jumps.o" "${paths[@]/%/.o}"
