#!/usr/bin/env bash
# Enforces who may include whom.
#
#   core  <-  ref cpu cuda comm          a module sees itself and core
#   core  <-  model optim probe data     a module sees itself and core
#   all of these  <-  run  <-  train_gpt.c, tests, bench
#
# Quoted includes are written from the root of the tree. Headers of CUDA stand only under cuda/ and in the harness that
# runs it on the CPU, tests/cuda_on_cpu/; those of MPI and NCCL only under comm/. Prints each violation as file:line and
# exits with 1 if there is one.
set -euo pipefail
cd "$(dirname "$0")/.."

declare -A may_include=(
    [core]='core'
    [ref]='core ref' [cpu]='core cpu' [cuda]='core cuda' [comm]='core comm'
    [model]='core model' [optim]='core optim' [probe]='core probe' [data]='core data'
    [run]='core ref cpu cuda comm model optim probe data run'
    [train_gpt.c]='core ref cpu cuda comm model optim probe data run'
    [bench]='core ref cpu cuda comm model optim probe data run bench'
    [tests]='core ref cpu cuda comm model optim probe data run tests train_gpt.c'
)

violations=0
complain() { # place, sentence
    printf '%s: %s\n' "$1" "$2"
    violations=$((violations + 1))
}

check_project_header() { # place, module, header
    local owner=${3%%/*}
    if [[ ! -e $3 ]]; then
        complain "$1" "\"$3\" is not a path from the root of the tree"
    elif [[ " ${may_include[$2]} " != *" $owner "* ]]; then
        complain "$1" "$2 may not include $owner (\"$3\"); it may include: ${may_include[$2]}"
    fi
}

check_system_header() { # place, module, header
    case $3 in
    cuda*.h | cublas*.h | curand*.h | nvrtc*.h | nvml.h | nvtx*.h | cooperative_groups* | cub/*)
        [[ $2 == cuda || $1 == tests/cuda_on_cpu/* ]] || complain "$1" "<$3> belongs under cuda/"
        ;;
    mpi.h | nccl*.h) [[ $2 == comm ]] || complain "$1" "<$3> belongs under comm/" ;;
    esac
}

files=()
for module in "${!may_include[@]}"; do
    [[ -e $module ]] || continue
    while IFS= read -r file; do files+=("$file"); done < <(find "$module" -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' -o -name '*.cc')
done
while IFS=: read -r file line text; do
    [[ $text =~ include[[:space:]]*([\"<])([^\">]+) ]] || continue
    case ${BASH_REMATCH[1]} in
    '"') check_project_header "$file:$line" "${file%%/*}" "${BASH_REMATCH[2]}" ;;
    '<') check_system_header "$file:$line" "${file%%/*}" "${BASH_REMATCH[2]}" ;;
    esac
done < <(grep -nE '^[[:space:]]*#[[:space:]]*include' "${files[@]}" /dev/null)

printf 'includes: %d files, %d violations\n' "${#files[@]}" "$violations"
((violations == 0))
