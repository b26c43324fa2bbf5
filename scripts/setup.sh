#!/bin/sh
# Installs what is missing on Debian and Ubuntu, and says what and why.
#
#   scripts/setup.sh [build] [test] [quickstart] [compare] [develop]      no argument: build test
#
# Something is there if its Debian package is installed, or if a probe finds it otherwise (own builds, other systems).
# With everything there it makes no apt call. Without root (or sudo without a password) or without apt it prints the
# names and exits with 2. CC=clang asks for clang and its OpenMP in place of gcc.
set -eu

# Group, Debian package, probe, what for. A package with "?" before it is optional.
requirements() {
    case ${CC:-gcc} in
    *clang*)
        echo 'build       clang               command:clang          C compiler'
        echo 'build       libomp-dev          header:omp.h           OpenMP for clang'
        ;;
    *) echo 'build       gcc                 command:gcc            C compiler' ;;
    esac
    if command -v nvcc >/dev/null || [ -x /usr/local/cuda/bin/nvcc ]; then
        echo 'build       g++                 command:g++            host compiler of nvcc, runs the CUDA sources on the CPU'
    fi
    cat <<'END'
build       libc6-dev           header:stdio.h         headers of the C library
build       make                command:make           runs the build
build       ?libdnnl-dev        header:dnnl.h          oneDNN: fast matrix products on the CPU
build       libopenblas-dev     library:openblas       BLAS: for LAPACK, and matrix products where oneDNN is absent
build       liblapacke-dev      header:lapacke.h       LAPACK: singular values of weights and updates
build       libcjson-dev        header:cjson/cJSON.h   JSON: configs, metrics, checkpoints
test        libcmocka-dev       header:cmocka.h        test framework
quickstart  bible-kjv           command:bible          the King James Bible: 4.3 MB of text to train on
compare     python3-matplotlib  python:matplotlib      plots of scripts/compare.py
develop     clang               command:clang          second compiler
develop     libomp-dev          header:omp.h           OpenMP for clang
develop     ?libclang-rt-dev    library:clang_rt       libFuzzer and sanitizers for clang
develop     clang-format        command:clang-format   formatting of the sources
develop     shellcheck          command:shellcheck     checks of the scripts
develop     python3-minimal     command:python3        syntax check of the Python scripts
END
}

say() { printf 'setup: %s\n' "$*"; }

is_installed() { # package
    [ "$(dpkg-query -W -f '${db:Status-Status} ' "$1" 2>/dev/null | cut -d ' ' -f 1)" = installed ]
}

is_found() { # probe
    what=${1#*:}
    case $1 in
    command:*) command -v "$what" >/dev/null ;;
    header:*) echo "#include <$what>" | ${CC:-gcc} -fopenmp -E - >/dev/null 2>&1 ;;
    library:*) echo 'int main(void) { return 0; }' | ${CC:-gcc} -x c -o /dev/null - -l"$what" >/dev/null 2>&1 ;;
    python:*) python3 -c "import importlib.util as u, sys; sys.exit(not u.find_spec('$what'))" 2>/dev/null ;;
    esac
}

# False only where apt's package lists are there and do not offer it.
is_offered() { # package
    case $(apt-cache policy "$1" 2>/dev/null) in
    *'Candidate: (none)'*) return 1 ;;
    '') [ -z "$(find /var/lib/apt/lists -maxdepth 1 -name '*Packages*' 2>/dev/null)" ] ;;
    esac
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

can_install() {
    command -v apt-get >/dev/null && as_root true 2>/dev/null
}

apt_get() { # silent unless it fails
    if ! as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq "$@" >"$work/log" 2>&1; then
        cat "$work/log" >&2
        say "apt-get $1 failed (its messages are above); fix that and run this again" >&2
        exit 1
    fi
}

[ $# -gt 0 ] || set -- build test
for group; do
    case $group in
    build | test | quickstart | compare | develop) ;;
    *)
        say "unknown group \"$group\"; known: build test quickstart compare develop" >&2
        exit 2
        ;;
    esac
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
requirements >"$work/requirements"

needed=''
optional=''
while read -r group package probe purpose; do
    case " $* " in *" $group "*) ;; *) continue ;; esac
    name=${package#\?}
    case "$needed$optional " in *" $name "*) continue ;; esac
    if is_installed "$name" || is_found "$probe"; then continue; fi
    if [ "$name" = "$package" ]; then
        needed="$needed $name"
    elif is_offered "$name"; then
        optional="$optional $name"
    else
        say "continuing without $name ($purpose): not in this system's package lists"
        continue
    fi
    say "missing: $name ($purpose)"
done <"$work/requirements"

[ -n "$needed$optional" ] || exit 0

if ! can_install; then
    say "cannot install here: that needs apt-get, and root or sudo without a password." >&2
    say "Install these with your system's package manager${needed:+ and run this again}:$needed$optional" >&2
    [ -z "$needed" ] || exit 2
    exit 0
fi

say 'apt-get update'
apt_get update
for name in $optional; do
    if is_offered "$name"; then
        needed="$needed $name"
    else
        say "continuing without $name: not in this system's package lists"
    fi
done
[ -n "$needed" ] || exit 0
say "apt-get install$needed"
# shellcheck disable=SC2086  # one word for each package
apt_get install -y --no-install-recommends $needed
