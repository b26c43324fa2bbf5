#!/usr/bin/env bash
# Trains the same small model on the same text with each optimizer, all measurements on, and draws what they show: the
# page of scripts/compare.py and the pictures of scripts/measurements.py. Run by `make lab`; CORPUS=FILE trains on a
# text of your own, OPTIMIZERS='muon lion' on a choice of them.
set -euo pipefail
cd "$(dirname "$0")/.."

data=datasets/shakespeare
out=runs/lab
optimizers=${OPTIMIZERS:-adamw muon normuon adamuon lion sgd}

# The best of those tried with configs/lab.json (docs/optimizers.md).
rate_of() { # optimizer
    case $1 in
    adamw) echo 0.004 ;;
    muon | normuon | adamuon) echo 0.008 ;;
    lion) echo 0.0008 ;;
    sgd) echo 0.1 ;;
    *)
        echo "lab: unknown optimizer \"$1\"" >&2
        return 2
        ;;
    esac
}

scripts/setup.sh build compare
make --no-print-directory -j"$(nproc)"
scripts/get_corpus.sh "$data" shakespeare
./train_gpt prepare "$data" "$data/corpus.txt"
runs=()
for optimizer in $optimizers; do
    rate=$(rate_of "$optimizer")
    ./train_gpt configs/lab.json name="lab-$optimizer" optimizer.matrices="$optimizer" optimizer.lr="$rate"
    runs+=("$(scripts/newest_run.sh "lab-$optimizer")")
done

python=python3 # in the PATH it may be another than the one that Debian's matplotlib is for
$python -c 'import matplotlib' 2>/dev/null || python=/usr/bin/python3
$python scripts/compare.py "${runs[@]}" --out "$out"
$python scripts/measurements.py "${runs[@]}" --out "$out"
