#!/usr/bin/env bash
# From a bare machine to a trained model in a few minutes: set-up, build, text, token files, training, evaluation,
# sample. Run by `make quickstart`; CORPUS=FILE trains on a text of your own.
set -euo pipefail
cd "$(dirname "$0")/.."

config=configs/quickstart.json
data=datasets/quickstart

step() { printf '\n== %s\n' "$*"; }

step 'Set-up'
scripts/setup.sh build

step 'Build'
make --no-print-directory -j"$(nproc)"

step 'Text'
scripts/get_corpus.sh "$data"
./train_gpt prepare "$data" "$data/corpus.txt"

step "Training with Muon and QK-Clip: $config"
./train_gpt "$config"
run=$(scripts/newest_run.sh quickstart)

step 'Evaluation'
./train_gpt eval "$run"

step 'Sample'
./train_gpt sample "$run" --prompt 'In the beginning '

row() { printf '  %-44s %s\n' "$1" "$2"; }

step 'What was written'
row "$data/" 'the text, its tokens for training and validation, the tokenizer'
row "$run/config.json" 'every setting of the run'
row "$run/metrics.jsonl" 'loss, MaxLogit, clips and spectra of every step (docs/measurements.md)'
row "$run/checkpoints/" 'weights and optimizer state; Hugging Face transformers loads the folders'

cat <<END

Next:
  ./train_gpt sample $run --prompt 'And it came to pass'
  ./train_gpt --resume $run train.steps=N                 # continue training, up to step N
  ./train_gpt $config optimizer.matrices=adamw name=quickstart-adamw
  make compare                                            # Muon against AdamW, with plots
  ./train_gpt --help                                      # every setting
END
