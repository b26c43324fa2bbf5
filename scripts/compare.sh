#!/usr/bin/env bash
# Trains AdamW and Muon on the same text and makes a page that compares them. Run by `make compare`; CORPUS=FILE trains
# on a text of your own.
set -euo pipefail
cd "$(dirname "$0")/.."

data=datasets/shakespeare
out=runs/compare

scripts/setup.sh build compare
make --no-print-directory -j"$(nproc)"
scripts/get_corpus.sh "$data" shakespeare
./train_gpt prepare "$data" "$data/corpus.txt"
./train_gpt configs/shakespeare-adamw.json
./train_gpt configs/shakespeare-muon.json

python=python3 # in the PATH it may be another than the one that Debian's matplotlib is for
$python -c 'import matplotlib' 2>/dev/null || python=/usr/bin/python3
$python scripts/compare.py "$(scripts/newest_run.sh shakespeare-adamw)" "$(scripts/newest_run.sh shakespeare-muon)" --out "$out"
