#!/usr/bin/env bash
# Enforces the floors: who may include and who may call whom.
#
#   base < ops < ref, cpu, cuda < device < model, data < optim < probe < run < train_gpt.c, bench, tests
#
# A floor uses itself and every floor below it; ref, cpu and cuda do not know each other, nor do model and data. Quoted
# includes are written from the root of the tree. Headers of CUDA stand only under cuda/ and in the harness that runs it
# on the CPU, tests/cuda_on_cpu/; those of MPI and NCCL only under comm/.
#
#   scripts/check_floors.sh [BUILD]             BUILD: a folder with the floors' libraries in lib/
#   scripts/check_floors.sh --below FLOOR       prints the floors below one
#
# With a build folder it also reads the symbols of the libraries there: no object calls one of a floor above its own, and
# no objects call each other in a circle. Prints each violation and exits with 1 if there is one.
set -euo pipefail
cd "$(dirname "$0")/.."

backends='ref cpu cuda comm'
declare -A below=(
    [base]='' [ops]='base'
    [ref]='base ops' [cpu]='base ops' [cuda]='base ops' [comm]='base ops'
    [device]="base ops $backends"
    [model]="base ops $backends device" [data]="base ops $backends device"
    [optim]="base ops $backends device model data"
    [probe]="base ops $backends device model data optim"
    [run]="base ops $backends device model data optim probe"
    [train]="base ops $backends device model data optim probe run" # train_gpt.c
)
all="${below[train]} train"

if [[ ${1:-} == --below ]]; then
    echo "${below[$2]}"
    exit
fi

violations=0
complain() { # place, sentence
    printf '%s: %s\n' "$1" "$2"
    violations=$((violations + 1))
}

may_use() { # floor or folder, floor
    case $1 in
    *.[ch] | bench | tests) return 0 ;;
    *) [[ " ${below[$1]} $1 " == *" $2 "* ]] ;;
    esac
}

# ---- includes

check_project_header() { # place, floor, header
    local owner=${3%%/*}
    if [[ ! -e $3 ]]; then
        complain "$1" "\"$3\" is not a path from the root of the tree"
    elif ! may_use "$2" "$owner"; then
        complain "$1" "$2 may not include $owner (\"$3\"); it may include: ${below[$2]} $2"
    fi
}

check_system_header() { # place, floor, header
    case $3 in
    cuda*.h | cublas*.h | curand*.h | nvrtc*.h | nvml.h | nvtx*.h | cooperative_groups* | cub/*)
        [[ $2 == cuda || $1 == tests/cuda_on_cpu/* ]] || complain "$1" "<$3> belongs under cuda/"
        ;;
    mpi.h | nccl*.h) [[ $2 == comm ]] || complain "$1" "<$3> belongs under comm/" ;;
    esac
}

files=(*.c)
for folder in $all bench tests; do
    [[ -d $folder ]] || continue
    while IFS= read -r file; do files+=("$file"); done < <(find "$folder" -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' -o -name '*.cc')
done
while IFS=: read -r file line text; do
    [[ $text =~ include[[:space:]]*([\"<])([^\">]+) ]] || continue
    case ${BASH_REMATCH[1]} in
    '"') check_project_header "$file:$line" "${file%%/*}" "${BASH_REMATCH[2]}" ;;
    '<') check_system_header "$file:$line" "${file%%/*}" "${BASH_REMATCH[2]}" ;;
    esac
done < <(grep -nE '^[[:space:]]*#[[:space:]]*include' "${files[@]}" /dev/null)

# ---- calls

# "caller callee" for each pair of objects of which one uses a symbol that the other defines.
calls() { # build folder
    local floor libraries=()
    for floor in $all; do [[ ! -e $1/lib/$floor.a ]] || libraries+=("$1/lib/$floor.a"); done
    nm -A -g "${libraries[@]}" |
        sed -nE "s#^$1/lib/([a-z]*)\.a:([^:]*):[0-9a-f ]*([A-Za-z]) (.*)#\1/\2 \3 \4#p" |
        awk '{ if ($2 == "U" || $2 == "w") use[$1 " " $3]; else if ($2 ~ /[TDBRC]/) home[$3] = $1 }
             END { for (u in use) { split(u, part, " "); if (part[2] in home && home[part[2]] != part[1]) print part[1], home[part[2]] } }' |
        sort -u
}

check_calls() { # build folder
    local caller callee circles
    calls "$1" >"$work/calls"
    while read -r caller callee; do
        may_use "${caller%%/*}" "${callee%%/*}" || complain "$caller" "calls $callee, which is not below it"
    done <"$work/calls"
    circles=$(tsort "$work/calls" 2>&1 >/dev/null | sed -n 's/^tsort: \([a-z].*\.o\)$/\1/p' | tr '\n' ' ' || true)
    [[ -z $circles ]] || complain "$1" "a circle of calls: $circles"
    printf 'calls: %d pairs of objects\n' "$(wc -l <"$work/calls")"
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if (($# > 0)); then check_calls "$1"; fi

printf 'floors: %d files, %d violation%s\n' "${#files[@]}" "$violations" "$( ((violations == 1)) || echo s)"
((violations == 0))
