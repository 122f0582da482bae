#!/usr/bin/env bash
# Every figure that needs a GPU, from one command: bash bench/on_gpu.sh [--dry-run] [--out DIR]
#
# For a machine with an NVIDIA GPU on which python, torch and triton are installed; it needs no network. Parts run one
# after another, each with a time limit. A part that fails is written down and the next one runs. Everything is left in
# one folder: logs/, JSON lines, PNG, and summary.md, whose table of speeds goes into the README. About an hour; an hour and a half at most.
# The exit code is 0 if every part went well, else 1.
#
# --dry-run goes the same way on a CPU, with sizes that take no time.
# PYTHON: the interpreter (default: python, else python3).
set -u
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$(command -v python || command -v python3)}
case $python in /*) ;; */*) python=$PWD/$python ;; esac
dry=0 out=""
while [ $# -gt 0 ]; do
    case $1 in
        --dry-run) dry=1 ;;
        --out) [ $# -gt 1 ] || { echo "on_gpu.sh: --out: expected a folder" >&2; exit 2; }
            shift
            case $1 in /*) out=$1 ;; *) out=$PWD/$1 ;; esac ;;
        *) echo "on_gpu.sh: expected --dry-run or --out DIR, got $1" >&2; exit 2 ;;
    esac
    shift
done

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch" || exit 1
mkdir logs
: > parts.tsv
failed=0

note() { # name, result, seconds, detail
    printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$(printf '%s' "$4" | tr '\t|' '  ' | cut -c 1-200)" >> "$here/parts.tsv"
    echo "== $1: $2 ($3 s) $4"
}

part() { # name, limit in seconds, command...
    local name=$1 limit=$2 start=$SECONDS code=0 result log
    shift 2
    log=$here/logs/$name.log
    echo "== $name: at most $limit s, log in $log"
    if command -v timeout > /dev/null; then
        timeout --kill-after=10 "$limit" "$@" > "$log" 2>&1 || code=$?
    else
        "$@" > "$log" 2>&1 || code=$?
    fi
    result=ok
    [ "$code" = 0 ] || { failed=1; result="FAILED with exit code $code"; }
    [ "$code" != 124 ] || result="FAILED: not done after $limit s"
    note "$name" "$result" $((SECONDS - start)) "$(tail -n 1 "$log" | tr -d '\r')"
    return "$code"
}

installed() { # the package that Python finds is this checkout's, with its kernels and benchmarks
    "$python" - "$root" <<'PYTHON'
import pathlib
import sys

import trigru
import trigru.bench.command
import trigru.kernels.launch

found = pathlib.Path(trigru.modules.__file__).resolve().parents[1]
sys.exit(f"trigru is {found}, not {sys.argv[1]}" if found != pathlib.Path(sys.argv[1]).resolve() else 0)
PYTHON
}

install() { # as it is; else by pip without a network; else by a link
    installed && echo "installed already" && return
    "$python" -m pip install --no-deps --no-build-isolation --no-index --editable "$root" && installed &&
        echo "installed by pip" && return
    mkdir -p "$scratch/path" && ln -sfn "$root/trigru" "$scratch/path/trigru"
    PYTHONPATH=$scratch/path installed && echo "linked, for pip could not install it"
}

machine() {
    ! command -v nvidia-smi > /dev/null || nvidia-smi -q
    "$python" -m trigru info
}

gpu_tests() {
    "$python" -c "import pytest" || { echo "pytest is not installed, so no test ran"; return 1; }
    local files
    mapfile -t files < <(grep -l "mark\.gpu" "$root"/tests/*.py)
    # The project's options ask for pytest-xdist, which need not be here.
    "$python" -m pytest -c "$root/pyproject.toml" --rootdir "$root" -o addopts= --strict-markers -p no:cacheprovider \
        -m gpu -rs "${files[@]}"
}

export -f installed install machine gpu_tests
export root python scratch

here=$scratch
part install 300 bash -c install
[ ! -d "$scratch/path" ] || export PYTHONPATH=$scratch/path

if [ -z "$out" ]; then
    if [ "$dry" = 1 ]; then
        base=$root/out/dry-run
    else
        base=$root/bench/results/$("$python" -c \
            "from trigru.bench.measuring import conditions as c; print(c.folder(c.of_run('cuda')))" ||
            echo "unknown/$(date -u +%Y-%m-%d)")
    fi
    out=$base
    for ((i = 2; ; i++)); do
        [ -e "$out" ] || break
        out=$base-$i
    done
fi
mkdir -p "$out" || exit 1
mv "$scratch/logs" "$scratch/parts.tsv" "$out/" || exit 1
here=$out

bench=("$python" -m trigru bench)
if [ "$dry" = 1 ]; then
    device=(--device cpu --tiny)
    quick=("${bench[@]}" "${device[@]}")
    full=("${bench[@]}" "${device[@]}" --suite layer step module memory --dtype fp32 --direction forward forward+backward)
    schedules=("${bench[@]}" "${device[@]}" --suite layer --schedule eager --dtype fp32)
    check=("$python" -m trigru check --device cpu --quick --schedule eager --variant torch --dtype fp32)
else
    device=(--device cuda)
    quick=("${bench[@]}" "${device[@]}" --quick)
    full=("${bench[@]}" "${device[@]}")
    check=("$python" -m trigru check --quick)
fi

each_schedule() { # for the fit: what "auto" would not choose, too
    local name code=0
    for name in stepwise resident persistent; do
        "$python" -m trigru bench --device cuda --suite layer --schedule $name --direction forward --peers nn.GRU "trigru, flags" \
            --dtype bf16 tf32 --variant torch cho --hidden 64 128 512 --batch 16 64 --seq-len 256 --seconds 0.1 \
            --minutes 2.5 --no-figures --out "$out/schedules" || code=$?
    done
    return "$code"
}
fit() {
    cat "$out"/full/layer.jsonl "$out"/schedules/layer.jsonl > "$out/fitted-rows.jsonl"
    "$python" -m trigru bench --fit "$out/fitted-rows.jsonl"
}
export -f each_schedule fit
export out

part machine 120 bash -c machine
part check 420 "${check[@]}"
part tests 1500 bash -c gpu_tests
part quick 400 "${quick[@]}" --out "$out/quick"
part full 1500 "${full[@]}" --out "$out/full"
if [ "$dry" = 1 ]; then
    part schedules 300 "${schedules[@]}" --out "$out/schedules"
    note fit "skipped" 0 "there are no rows of a GPU to fit"
else
    part schedules 540 bash -c each_schedule
    part fit 120 bash -c fit
fi
for run in quick full schedules; do # beside the summary, where one looks for them
    for figure in "$out/$run"/*.png; do
        [ ! -e "$figure" ] || cp "$figure" "$out/$run-$(basename "$figure")"
    done
done

part summary 120 "$python" -m trigru.bench.report.summary "$out" || {
    { echo "# Benchmarks"; echo; echo "The summary could not be made; what ran:"; echo; cat "$out/parts.tsv"; } > "$out/summary.md"
}
echo "$out/summary.md"
exit "$failed"
