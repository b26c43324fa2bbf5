#!/usr/bin/env bash
# Runs cmocka test programs and counts their test functions.
#
#   scripts/run_tests.sh PROGRAM...      TEST_TIMEOUT=seconds for each program (1200), TEST_JOBS=programs at a time (cores)
#   scripts/run_tests.sh PROGRAM NAME=VALUE PROGRAM...      sets a variable for the programs after it
#
# One line for each program, as it ends; the whole output of a program in which something failed. A test that never reported (a
# crash, a time limit), a program that ran no test and one that exits with an error count as failed. The last line is
# "N passed, N failed"; the exit status is 0 only if something passed and nothing failed.
set -euo pipefail

jobs=${TEST_JOBS:-$(nproc)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} # threads that wait for others of their program leave the core to its neighbour

count() { # pattern
    sed -n "s/$1/\\1/p" "$output" | awk '{ n += $1 } END { print n + 0 }'
}

# Writes "passed failed" to $work/NUMBER.count.
run_program() { # program, number
    local started=$SECONDS status=0 output=$work/$2.output name total good skipped bad
    name=$(basename "$(dirname "$1")")/$(basename "$1")${setting:+ $setting}
    timeout --kill-after=10 "${TEST_TIMEOUT:-1200}" "$1" >"$output" 2>&1 </dev/null || status=$?
    total=$(count '^\[==========\] Running \([0-9]*\) test.*')
    good=$(grep -c '^\[       OK \]' "$output" || true)
    skipped=$(grep '^\[  SKIPPED \] [^0-9]' "$output" | sort -u | wc -l || true) # named again in cmocka's list
    bad=$((total - good - skipped))
    if ((status != 0 || total == 0)) && ((bad == 0)); then bad=1; fi
    printf '%d %d\n' "$good" "$bad" >"$work/$2.count"

    if ((bad > 0)); then
        cat "$output"
        case $status in
        0) ;;
        124 | 137) printf '%s: stopped after %s s\n' "$name" "${TEST_TIMEOUT:-1200}" ;;
        *) printf '%s: exit status %d%s\n' "$name" "$status" "$( ((status > 128)) && echo " (signal $((status - 128)))")" ;;
        esac
        ((total > 0)) || printf '%s: ran no test\n' "$name"
    fi
    printf '%-40s %3d passed, %d failed%s, %d s\n' "$name:" "$good" "$bad" \
        "$( ((skipped > 0)) && echo ", $skipped skipped")" "$((SECONDS - started))"
}

# What a program has to say comes in one piece, whatever runs beside it.
start_program() { # program, number
    # a program that ends badly has counted itself, or is missed at the end
    while (($(jobs -rp | wc -l) >= jobs)); do wait -n || true; done
    { run_program "$1" "$2" >"$work/$2.report" && cat "$work/$2.report"; } &
}

(($# > 0)) || echo 'no test program to run'
setting='' number=0
for word; do
    case $word in
    *=*)
        export "${word?}"
        setting=${word#*=}
        ;;
    *) start_program "$word" $((++number)) ;;
    esac
done
wait
read -r passed failed < <(find "$work" -name "*.count" -exec cat {} + | awk '{ p += $1; f += $2 } END { print p + 0, f + 0 }')
failed=$((failed + number - $(find "$work" -name '*.count' | wc -l))) # programs that could not be counted
printf '%d passed, %d failed\n' "$passed" "$failed"
((failed == 0 && passed > 0))
