#!/usr/bin/env bash
# Compares two builds: the same losses, MaxLogit, weights, and resume, over six small configurations.
#
#   scripts/same_bits.sh OLD/train_gpt NEW/train_gpt [STEPS]        30 steps
#
# Losses and MaxLogit of every head in every step come from metrics.jsonl, weights and optimizer state from the last
# checkpoint. The new build also resumes the old one's run from its middle checkpoint, and must end in the same weights.
# Optimizer state may be laid out anew: where only its file differs, that is said but not held against it.
#
# The program of an earlier commit:
#
#   git worktree add /tmp/old COMMIT && make -C /tmp/old CUDA=0 && scripts/same_bits.sh /tmp/old/build/train_gpt build/train_gpt
set -euo pipefail

old=$(realpath "${1:?usage: scripts/same_bits.sh OLD/train_gpt NEW/train_gpt [STEPS]}")
new=$(realpath "${2:?usage: scripts/same_bits.sh OLD/train_gpt NEW/train_gpt [STEPS]}")
steps=${3:-30}
last=checkpoints/step_$(printf %08d "$steps")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

small=(model.layers=3 model.heads=4 model.kv_heads=4 model.width=64 model.context=48 model.vocab=96 model.init_std=0.06
    train.batch=4 "train.steps=$steps" train.eval_every=10 "checkpoint.every=$((steps / 2))" qk_clip.threshold=0.5
    probe.spectrum_every=10 probe.collision_every=10 probe.momentum_every=10 probe.shadow_every=10 probe.logits_every=10
    probe.bound_every=10 device=cpu threads=2 "runs_dir=$work/runs")
cases=(
    'gpt2-muon-fp32 model.preset=gpt2 precision=fp32 optimizer.matrices=muon train.micro_batch=2'
    'gpt2-adamw-bf16 model.preset=gpt2 precision=bf16 optimizer.matrices=adamw'
    'llama-lion-fp32 precision=fp32 optimizer.matrices=lion train.micro_batch=1 optimizer.lr=0.0005'
    'llama-muon-bf16 precision=bf16 optimizer.matrices=muon train.micro_batch=2 optimizer.muon.per_head=["q"]'
    'gqa-muon-fp32 model.kv_heads=2 precision=fp32 optimizer.matrices=muon train.micro_batch=4'
    'mla-muon-bf16 model.attention=mla precision=bf16 optimizer.matrices=muon train.micro_batch=2'
)

run() { # program, arguments
    "$@" >"$work/log" 2>&1 || { cat "$work/log" && exit 1; }
}

train() { # case
    local words name
    read -ra words <<<"$1"
    name=$work/runs/${words[0]}
    run "$old" "name=${words[0]}-old" "${small[@]}" "${words[@]:1}"
    run "$new" "name=${words[0]}-new" "${small[@]}" "${words[@]:1}"
    cp -r "$name-old" "$name-resumed"
    rm -r "$name-resumed/$last"
    run "$new" --resume "$name-resumed"
}

field() { # name, run folder: that field of every step's line
    grep -o "\"$1\":\(\[\[[^a-z]*\]\]\|[^,}]*\)" "$2/metrics.jsonl"
}

are_same() { # run folder, run folder
    local name
    for name in loss max_logit_heads; do
        [[ $(field "$name" "$1" | wc -l) == "$steps" ]] || { echo "  $1: not $steps steps with $name" && return 1; }
        cmp <(field "$name" "$1") <(field "$name" "$2") || { echo "  $name differs" && return 1; }
    done
    cmp "$1/$last/model.safetensors" "$2/$last/model.safetensors" || return 1
    cmp -s "$1/$last/optimizer.safetensors" "$2/$last/optimizer.safetensors" || echo '  (optimizer.safetensors differs)'
}

failed=0
for case in "${cases[@]}"; do
    train "$case"
    name=${case%% *}
    if are_same "$work/runs/$name-old" "$work/runs/$name-new" && are_same "$work/runs/$name-old" "$work/runs/$name-resumed"; then
        echo "$name: the same bits, resumed too"
    else
        echo "$name: different"
        failed=1
    fi
done
exit $failed
