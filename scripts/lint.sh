#!/usr/bin/env bash
# What can be said about the repository without compiling it, in seconds: `make lint`, part of `make test`.
#
#   scripts/lint.sh [shell|links|flags|sizes|version]...     all of them if none is named
#
# Prints a line for each finding, and exits with 1 if there is any. Where a program is missing it says so and passes.
set -u
cd "$(dirname "$0")/.." || exit 2
export LC_ALL=C.UTF-8  # a character is a character, not its bytes
git rev-parse HEAD > /dev/null || { echo "lint: this is no git checkout, which alone says what to look at"; exit 2; }
found=0
finding() { echo "lint: $*"; found=1; }

# all PATTERN...: the repository's files, new ones too
all() {
    git ls-files --cached --others --exclude-standard -- "$@" | while read -r file; do
        if [ -f "$file" ]; then echo "$file"; fi
    done
}
shell_scripts() { all | xargs awk 'FNR == 1 && /^#!.*[\/ ](ba)?sh$/ { print FILENAME }'; }

# --- shellcheck has nothing to say about any script; .shellcheckrc lists the rules that are off, and why
lint_shell() {
    if ! command -v shellcheck > /dev/null; then
        echo "lint: shellcheck is not installed, so scripts are not checked"
    else
        shell_scripts | xargs shellcheck || finding "shellcheck found what is above"
    fi
}

# --- what a page links to in the repository is there: the file, and its heading
# anchors PAGE: its headings' names in links, as the usual hosts make them: small letters, no punctuation, - for a blank
anchors() { sed -n 's/^##* *//p' "$1" | tr '[:upper:]' '[:lower:]' | sed 's/[^[:alnum:] _-]//g; s/ /-/g'; }
lint_links() {
    local page link path anchor
    while IFS=: read -r page link; do
        link=${link#](} link=${link%)}
        path=${link%%#*} anchor=
        [[ $link != *#* ]] || anchor=${link#*#}
        if [ -z "$path" ]; then path=$page; else path=$(dirname "$page")/$path; fi
        if [ ! -e "$path" ]; then
            finding "$page: the link $link leads nowhere"
        elif [ -n "$anchor" ] && ! anchors "$path" | grep -qxF -- "$anchor"; then
            finding "$page: the link $link names no heading"
        fi
    done < <(all '*.md' | xargs grep -HoE '\]\([^) ]+\)' | grep -vE '\]\(https?:')
}

# --- every --word of a page is a flag of one of our programs or scripts, or of one of these other programs
other_flags=(
    bind-to hostfile mca  # mpirun
    sysroot               # g++
    gtest_filter          # GoogleTest
    ff_mode               # the authors' code
)
known_flags() {
    local name='[a-z][a-z0-9-]*'
    all '*.cu' '*.cpp' '*.h' ':!dev/test' | xargs grep -hoE "[\"!]--$name" | sed 's/.*--//'
    # A field of the configurations, field_name, is the flag --field-name, or also --no-field-name.
    all '*.h' '*.cpp' | xargs cat | tr '\n' ' ' | grep -oE '\{\.name = "[a-z0-9_]+"' |
        sed 's/.*"\(.*\)"/\1/; s/_/-/g; p; s/^/no-/'
    shell_scripts | xargs grep -hE '^ *-[-a-z |]*\)' | grep -oE -- "--$name" | sed 's/--//'  # labels of a case
    all '*.py' | xargs grep -h add_argument | grep -oE -- "--$name" | sed 's/--//'
    printf '%s\n' help "${other_flags[@]}"
}
lint_flags() {
    local place
    while read -r place; do
        finding "${place%%:*}: --${place##*--} is no flag of any program here"
    done < <(all '*.md' | xargs grep -HoE -- '(^|[^A-Za-z0-9_-])--[a-z][a-z0-9_-]*' |
        awk 'NR == FNR { known[$1]; next } { flag = $0; sub(/.*--/, "", flag); if (!(flag in known)) print }' \
            <(known_flags) -)
}

# --- a file has at most 500 lines, a function 60, a line 120 characters
# Functions that are longer. The list only gets shorter: who mends one takes it off. A table of fields has a row a flag.
long_functions=(CommandLine generate)
lint_sizes() {
    local sources file lines place name
    mapfile -t sources < <(all 'llmc/*.h' 'llmc/*.cpp' 'llmc/*.cu' 'llmc/*.cuh' '*.cu' 'data/*.cpp' \
        'dev/golden/*.h' 'dev/golden/*.cpp')
    while read -r lines file; do
        [ "$file" = total ] || [ "$lines" -le 500 ] || finding "$file has $lines lines, more than 500"
    done < <(wc -l "${sources[@]}")
    local -A unseen=()
    for name in "${long_functions[@]}"; do unseen[$name]=; done
    while read -r place name lines; do
        if [ -v "unseen[$name]" ]; then unset "unseen[$name]"
        else finding "$place: $name has $lines lines, more than 60"; fi
    done < <(awk -v limit=60 -f scripts/functions.awk "${sources[@]}")
    for name in "${!unseen[@]}"; do finding "scripts/lint.sh: take $name off the list, it is not too long"; done
    while read -r place; do
        finding "$place: a line of more than 120 characters"
    done < <({ all '*.h' '*.cpp' '*.cu' '*.cuh' '*.inc' '*.py' '*.yml' Makefile; shell_scripts; } |
        xargs grep -HnE '^.{121}' | cut -d : -f 1,2)
}

# --- one version number: llmc/base/version.h has it, CITATION.cff and the newest heading of CHANGELOG.md say the same
lint_version() {
    local number cited changes
    number=$(sed -n 's/.*project_version = "\(.*\)";/\1/p' llmc/base/version.h)
    cited=$(sed -n 's/^version: *//p' CITATION.cff)
    changes=$(sed -n 's/^## *\([0-9.]*\).*/\1/p' CHANGELOG.md | head -n 1)
    [ -n "$number" ] || finding "llmc/base/version.h has no project_version"
    [ "$cited" = "$number" ] || finding "CITATION.cff has version $cited, llmc/base/version.h $number"
    [ "$changes" = "$number" ] || finding "CHANGELOG.md begins with version $changes, llmc/base/version.h has $number"
}

for check in "${@:-all}"; do
    case $check in
        shell) lint_shell ;;
        links) lint_links ;;
        flags) lint_flags ;;
        sizes) lint_sizes ;;
        version) lint_version ;;
        all) lint_shell; lint_links; lint_flags; lint_sizes; lint_version ;;
        *) echo "lint: $check is no check: choose shell, links, flags, sizes or version" >&2; exit 2 ;;
    esac
done
exit $found
