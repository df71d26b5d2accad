#!/usr/bin/env bash
# Installs the packages that are missing, after printing the exact command.
#
#   scripts/deps.sh build|test|demo|all     what to make possible
#
# DEPS=no: installs nothing, says what is missing and exits with 2. gnuplot (for the demo's plots), Open MPI (for more
# than one process), iproute2 (for the test with two hosts), qemu-user (for the test on older processors)
# and shellcheck (for `make lint`) are never required.
# shellcheck disable=SC2086,SC2116  # lists of packages are words, to be split
set -eu
cd "$(dirname "$0")/.."
purpose=${1:-all}

# what_is_missing: the Debian packages without which `purpose` fails, one line.
what_is_missing() {
    local dir
    dir=$(mktemp -d)
    scripts/detect.sh "$dir" > /dev/null
    local required tests gemm
    required=$(sed -n 's/^MISSING := //p' "$dir/config.mk")
    tests=$(sed -n 's/^MISSING_TESTS := //p' "$dir/config.mk")
    gemm=$(sed -n 's/^GEMM_LIB := //p' "$dir/config.mk")
    rm -rf "$dir"
    # No matmul library at all builds, but nobody should train with it unless they asked for it.
    if [ "$gemm" = plain ] && [ -z "${GEMM:-}" ]; then required="$required libdnnl-dev"; fi
    case $purpose in test | all) required="$required $tests" ;; esac
    echo $required
}

required=$(what_is_missing)
wanted=
case $purpose in demo | all) command -v gnuplot > /dev/null || wanted=gnuplot-nox ;; esac
case $purpose in
    test | all)
        { command -v mpirun && command -v mpicc; } > /dev/null || wanted="$wanted libopenmpi-dev openmpi-bin"
        command -v ip > /dev/null || wanted="$wanted iproute2"
        command -v shellcheck > /dev/null || wanted="$wanted shellcheck"
        [ "$(uname -m)" != x86_64 ] || command -v qemu-x86_64 > /dev/null || wanted="$wanted qemu-user" ;;
esac
if [ -z "$required$wanted" ]; then
    [ "$purpose" != all ] || echo "nothing is missing"
    exit 0
fi

# give_up REASON: without the wanted packages life goes on, without the required ones it does not.
give_up() {
    if [ -z "$required" ]; then
        echo "not installed ($1): $wanted; without gnuplot there are no plots as files, without Open MPI one process"
        exit 0
    fi
    echo "missing: $required; $1" >&2
    exit 2
}

packages=$(echo $required $wanted)
command="apt-get install -y --no-install-recommends $packages"
[ "${DEPS:-}" != no ] || give_up "DEPS=no forbids installing, so run: $command"
command -v apt-get > /dev/null ||
    give_up "there is no apt-get here: install the packages of these Debian names with your system's package manager"

root=()
if [ "$(id -u)" != 0 ]; then
    command -v sudo > /dev/null || give_up "neither root nor sudo, so run as root: $command"
    root=(sudo)
    [ -t 0 ] || root=(sudo -n)  # nobody there to type a password
fi
echo "installing what is missing:" "${root[@]}" "$command"
as_root() { "${root[@]}" env DEBIAN_FRONTEND=noninteractive "$@"; }
install() {
    if ! apt-get install -s "$@" > /dev/null 2>&1; then  # a fresh machine has no package lists yet
        as_root apt-get -qq update || return
    fi
    as_root apt-get -qq install -y --no-install-recommends "$@"
}
if [ -n "$required" ]; then
    install $required || give_up "apt-get failed (see above); install them by hand: $command"
    still=$(what_is_missing)
    if [ -n "$still" ]; then
        required=$still
        give_up "installed, yet ${CXX:-g++} does not find them; see \`make table\`"
    fi
fi
if [ -n "$wanted" ] && ! install $wanted; then
    required=
    give_up "apt-get failed, see above"
fi
