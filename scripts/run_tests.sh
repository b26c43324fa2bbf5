#!/usr/bin/env bash
# Runs cmocka test programs and counts their test functions.
#
#   scripts/run_tests.sh PROGRAM...      TEST_TIMEOUT=seconds for each program (600)
#
# One line for each program; the whole output of a program in which something failed. A test that never reported (a
# crash, a time limit), a program that ran no test and one that exits with an error count as failed. The last line is
# "N passed, N failed"; the exit status is 0 only if something passed and nothing failed.
set -euo pipefail

passed=0 failed=0
output=$(mktemp)
trap 'rm -f "$output"' EXIT

count() { # pattern
    sed -n "s/$1/\\1/p" "$output" | awk '{ n += $1 } END { print n + 0 }'
}

run_program() { # program
    local started=$SECONDS status=0 name total good skipped bad
    name=$(basename "$1")
    timeout --kill-after=10 "${TEST_TIMEOUT:-600}" "$1" >"$output" 2>&1 </dev/null || status=$?
    total=$(count '^\[==========\] Running \([0-9]*\) test.*')
    good=$(grep -c '^\[       OK \]' "$output" || true)
    skipped=$(grep '^\[  SKIPPED \] [^0-9]' "$output" | sort -u | wc -l || true) # named again in cmocka's list
    bad=$((total - good - skipped))
    if ((status != 0 || total == 0)) && ((bad == 0)); then bad=1; fi
    passed=$((passed + good))
    failed=$((failed + bad))

    if ((bad > 0)); then
        cat "$output"
        case $status in
        0) ;;
        124 | 137) printf '%s: stopped after %s s\n' "$name" "${TEST_TIMEOUT:-600}" ;;
        *) printf '%s: exit status %d%s\n' "$name" "$status" "$( ((status > 128)) && echo " (signal $((status - 128)))")" ;;
        esac
        ((total > 0)) || printf '%s: ran no test\n' "$name"
    fi
    printf '%-28s %3d passed, %d failed%s, %d s\n' "$name:" "$good" "$bad" \
        "$( ((skipped > 0)) && echo ", $skipped skipped")" "$((SECONDS - started))"
}

(($# > 0)) || echo 'no test programs given'
for program; do run_program "$program"; done
printf '%d passed, %d failed\n' "$passed" "$failed"
((failed == 0 && passed > 0))
