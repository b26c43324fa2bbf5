#!/usr/bin/env bash
# Puts a text to train on into DIR/corpus.txt and says where it came from.
#
#   scripts/get_corpus.sh DIR [bible|shakespeare]       the text to try first (bible)
#
#   CORPUS=FILE    takes that file instead
#   bible          the King James Bible from Debian's bible-kjv, 4.3 MB
#   shakespeare    tinyshakespeare from the char-rnn repository, 1.1 MB, by curl
#
# The second text serves where the first cannot be had. A corpus.txt that is already there stays, unless CORPUS is set.
set -euo pipefail

dir=${1:?usage: scripts/get_corpus.sh DIR [bible|shakespeare]}
first=${2:-bible}
text=$dir/corpus.txt
scripts=$(dirname "$0")
shakespeare_url=https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt

say() { printf 'corpus: %s\n' "$*"; }

is_larger_than() { # file, bytes
    [[ $(wc -c <"$1") -gt $2 ]]
}

get_bible() { # file
    "$scripts/setup.sh" quickstart >&2 || return 1
    bible -l 99999 gen1:1-rev22:21 </dev/null >"$1" && is_larger_than "$1" 4000000 || return 1
    source='the King James Bible (package bible-kjv)'
}

get_shakespeare() { # file
    command -v curl >/dev/null || return 1
    curl --fail --silent --show-error --location --retry 2 --max-time 120 --output "$1" "$shakespeare_url" || return 1
    is_larger_than "$1" 1000000 || return 1
    source="tinyshakespeare ($shakespeare_url)"
}

case $first in
bible) second=shakespeare ;;
shakespeare) second=bible ;;
*)
    say "unknown text \"$first\"; known: bible shakespeare" >&2
    exit 2
    ;;
esac

mkdir -p "$dir"
partial=$text.partial
trap 'rm -f "$partial"' EXIT
if [[ -n ${CORPUS:-} ]]; then
    cp -- "$CORPUS" "$partial"
    source=$CORPUS
elif [[ -s $text ]]; then
    say "$text is already there"
    exit 0
elif ! "get_$first" "$partial" && ! "get_$second" "$partial"; then
    say "found neither bible-kjv (needs apt) nor tinyshakespeare (needs curl and a network)." >&2
    say 'Use a text of your own: CORPUS=FILE make quickstart' >&2
    exit 2
fi
mv -- "$partial" "$text"
say "$text: $source, $(wc -c <"$text") bytes"
