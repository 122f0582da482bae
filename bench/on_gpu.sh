#!/usr/bin/env bash
# What needs a GPU, in parts: bash bench/on_gpu.sh [--only PART,...] [--list] [--minutes M] [--again] [--out DIR]
#
# For a machine with an NVIDIA GPU on which python, torch and triton are installed (pytest for the tests, with
# pytest-xdist several at once); it needs no network. Without --only, what decides most, most first, within 8 minutes:
# does it compile, is it right and faster than torch's own, a step's time, the host's time, then the rest. --only tables:
# every figure of the README, an hour. --list names the parts. Each has a limit below 10 minutes; one that fails is
# written down and the next one runs. A part that went well in the same folder is not run again, unless --again: so what
# was cut off goes on.
# Left in the folder: summary.md, rows.jsonl, machine.txt, tests.txt, log.txt and parts.tsv; folders of the tables.
# The exit code is 0 if every part went well, else 1.
#
# --tiny takes the smallest sizes, to see whether everything runs. --dry-run does so on a CPU, without what needs a GPU.
# PYTHON: the interpreter (default: python, else python3).
set -u
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$(command -v python || command -v python3)}
case $python in /*) ;; */*) python=$PWD/$python ;; esac

parts=( # name, limit in seconds, group, what it says
    "machine|60|first|driver, clocks, versions"
    "warm|120|first|does it compile: kernels of the next parts, many processes at once"
    "layer|200|first|19 layers and stacks against torch's own GRU, each checked against float64 before"
    "steps|90|first|a step's time alone"
    "protocols|60|first|a step's time by each protocol of the exchange"
    "host|40|first|the host's time of a call"
    "pingpong|40|first|the exchange's round trip by each kind of access, a launch, a copy"
    "schedules|120|first|every schedule on the same layer, for the plan's constants"
    "tests|580|first|the GPU tests"
    "check|420|tables|trigru check --quick"
    "quick|400|tables|trigru bench --quick"
    "full-layer|590|tables|trigru bench --suite layer"
    "full-module|400|tables|trigru bench --suite module"
    "full-step|400|tables|trigru bench --suite step"
    "full-memory|300|tables|trigru bench --suite memory overhead"
    "workloads|590|tables|trigru bench --suite workloads"
    "fit-rows|540|tables|layers by each schedule, for the fit"
    "fit|120|tables|the plan's constants from the rows of full-layer and fit-rows"
)
names=$(printf '%s\n' "${parts[@]}" | cut -d '|' -f 1 | tr '\n' ' ')
of_group() { printf '%s\n' "${parts[@]}" | grep "|$1|" | cut -d '|' -f 1 | tr '\n' ' '; }
usage() {
    echo "on_gpu.sh: $1" >&2
    exit 2
}

dry=0 tiny=0 again=0 out="" only="" minutes=""
while [ $# -gt 0 ]; do
    case $1 in
        --dry-run) dry=1 tiny=1 ;;
        --tiny) tiny=1 ;;
        --again) again=1 ;;
        --list)
            for line in "${parts[@]}"; do
                IFS='|' read -r name limit group what <<< "$line"
                printf '%-12s %-7s at most %3s s  %s\n' "$name" "$group" "$limit" "$what"
            done
            exit 0
            ;;
        --only | --minutes | --out)
            [ $# -gt 1 ] || usage "$1: expected a value"
            case $1 in
                --only) only="$only ${2//,/ }" ;;
                --minutes) minutes=$2 ;;
                --out) case $2 in /*) out=$2 ;; *) out=$PWD/$2 ;; esac ;;
            esac
            shift
            ;;
        *) usage "expected --only, --list, --minutes, --again, --tiny, --dry-run or --out, got $1" ;;
    esac
    shift
done
case $minutes in *[!0-9.]* | . | *.*.*) usage "--minutes: expected a number, got $minutes" ;; esac
wanted=" "
for name in ${only:-$([ "$dry" = 1 ] && echo all || echo first)}; do
    case $name in
        all) wanted="$wanted$names " ;;
        first | tables) wanted="$wanted$(of_group "$name") " ;;
        *)
            [[ " $names " == *" $name "* ]] || usage "--only: expected first, tables, all or parts of --list, got $name"
            wanted="$wanted$name "
            ;;
    esac
done
[ -n "$minutes$only" ] || [ "$dry" = 1 ] || minutes=8

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch" || exit 1
here=$scratch failed=0 end=""
: > parts.tsv
: > log.txt

note() { # name, result, seconds, detail; the last result of a part is its result
    grep -v "^$1	" "$here/parts.tsv" > "$scratch/kept.tsv" || true
    printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$(printf '%s' "$4" | tr '\t|' '  ' | cut -c 1-200)" >> "$scratch/kept.tsv"
    cp "$scratch/kept.tsv" "$here/parts.tsv"
    echo "== $1: $2 ($3 s) $4"
}

part() { # name, limit in seconds, file of what it says, command...
    local name=$1 limit=$2 log=$3 start=$SECONDS code=0 result
    shift 3
    if [ -n "$end" ] && [ "$limit" -gt $((end - SECONDS)) ]; then limit=$((end - SECONDS)); fi
    if [ "$limit" -lt 5 ]; then
        note "$name" "left out" 0 "the time is up; the same command goes on from here"
        return 0
    fi
    echo "== $name: at most $limit s"
    if command -v timeout > /dev/null; then
        timeout --kill-after=10 "$limit" "$@" > "$scratch/said" 2>&1 || code=$?
    else
        "$@" > "$scratch/said" 2>&1 || code=$?
    fi
    { echo "===== $name"; cat "$scratch/said"; } >> "$here/$log"
    result=ok
    [ "$code" = 0 ] || { failed=1; result="FAILED with exit code $code"; }
    [ "$code" != 124 ] || result="FAILED: not done after $limit s"
    note "$name" "$result" $((SECONDS - start)) "$(tail -n 1 "$scratch/said" | tr -d '\r')"
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
    PYTHONPATH=$scratch/path${PYTHONPATH:+:$PYTHONPATH} installed && echo "linked, for pip could not install it"
}

run_machine() {
    ! command -v nvidia-smi > /dev/null || { nvidia-smi && nvidia-smi -q -d CLOCK,POWER,MEMORY; }
    "$python" -m trigru info
}

run_tests() {
    "$python" -c "import pytest" || { echo "pytest is not installed, so no test ran"; return 1; }
    local files options=()
    mapfile -t files < <(grep -l "mark\.gpu" "$root"/tests/*.py)
    ! "$python" -c "import xdist" 2> /dev/null || options=(-n "$([ "$tiny" = 1 ] && echo 2 || echo 8)")
    [ "$tiny" = 0 ] || options+=(-k "cuda_graph")
    # The project's options ask for pytest-xdist, which need not be here.
    "$python" -m pytest -c "$root/pyproject.toml" --rootdir "$root" -o addopts= --strict-markers -p no:cacheprovider \
        -q "${options[@]}" -m gpu -rs "${files[@]}"
}

first() { "$python" -m trigru.bench.first ${small:+--tiny} --out "$out" "$@"; }
bench() { # folder, options...
    local folder=$1
    shift
    "$python" -m trigru bench --device "$device" --out "$out/$folder" "$@"
}
run_check() {
    if [ "$dry" = 1 ]; then
        "$python" -m trigru check --device cpu --quick --schedule eager --variant torch --dtype fp32
    else
        "$python" -m trigru check --quick ${small:+--variant torch --dtype bf16}
    fi
}
run_quick() { if [ "$tiny" = 1 ]; then bench quick --tiny $narrow; else bench quick --quick; fi; }
run_full() { # minutes, suites...
    local minutes=$1
    shift
    if [ "$tiny" = 1 ]; then
        bench "full-$1" --suite "$@" --tiny $narrow
    else
        bench "full-$1" --suite "$@" --minutes "$minutes"
    fi
}
run_workloads() {
    if [ "$tiny" = 1 ]; then
        bench workloads --suite workloads --tiny --rows rmvpe --peers nn.GRU
    else
        bench workloads --suite workloads --minutes 9
    fi
}
run_fit_rows() { # what "auto" would not choose, too
    local name code=0 names="stepwise resident persistent"
    if [ "$tiny" = 1 ]; then
        bench fit-rows --suite layer --tiny $narrow --schedule "$([ "$dry" = 1 ] && echo eager || echo persistent)"
        return
    fi
    for name in $names; do
        bench fit-rows --suite layer --schedule "$name" --direction forward --peers nn.GRU "trigru, flags" \
            --dtype bf16 tf32 --variant torch cho --hidden 64 128 512 --batch 16 64 --seq-len 256 --seconds 0.1 \
            --minutes 2.5 --no-figures || code=$?
    done
    return "$code"
}
run_fit() {
    cat "$out"/full-layer/layer.jsonl "$out"/fit-rows/layer.jsonl > "$out/fitted-rows.jsonl"
    "$python" -m trigru bench --fit "$out/fitted-rows.jsonl"
}

export -f installed install first bench run_machine run_tests run_check run_quick run_full run_workloads run_fit_rows run_fit
export root python scratch dry tiny

part install 120 log.txt bash -c install
[ ! -d "$scratch/path" ] || export PYTHONPATH=$scratch/path${PYTHONPATH:+:$PYTHONPATH}

if [ -z "$out" ]; then
    if [ "$dry" = 1 ]; then
        out=$root/out/dry-run
        rm -rf "$out"
    else
        out=$root/bench/results/$("$python" -c \
            "from trigru.bench.measuring import conditions as c; print(c.folder(c.of_run('cuda')))" ||
            echo "unknown/$(date -u +%Y-%m-%d)")
    fi
fi
mkdir -p "$out" || exit 1
touch "$out/parts.tsv"
cat "$scratch/log.txt" >> "$out/log.txt"
line=$(cat "$scratch/parts.tsv")
here=$out
IFS=$'\t' read -r name result seconds said <<< "$line"
note "$name" "$result" "$seconds" "$said" > /dev/null

small=$([ "$tiny" = 0 ] || echo 1)
device=$([ "$dry" = 1 ] && echo cpu || echo cuda)
narrow=$([ "$dry" = 1 ] && echo "--dtype fp32 --direction forward+backward" ||
    echo "--dtype bf16 --variant torch --direction forward+backward --peers nn.GRU")
export out small device narrow
[ -z "$minutes" ] || end=$((SECONDS + $(awk "BEGIN { print int(60 * $minutes) }")))

went_well() { [ "$again" = 0 ] && grep -q "^$1	ok	" "$out/parts.tsv"; }
for line in "${parts[@]}"; do
    IFS='|' read -r name limit group what <<< "$line"
    [[ $wanted == *" $name "* ]] || continue
    [ "$tiny" = 0 ] || limit=$((5 * limit)) # a CPU may stand for the GPU
    if went_well "$name"; then
        echo "== $name: went well before"
        continue
    fi
    case $name in
        warm | layer | steps | protocols | host | pingpong | schedules)
            if [ "$dry" = 1 ]; then
                note "$name" skipped 0 "it needs a GPU"
            else
                part "$name" "$limit" log.txt bash -c "first $name"
            fi
            ;;
        machine) part machine "$limit" machine.txt bash -c run_machine ;;
        tests) part tests "$limit" tests.txt bash -c run_tests ;;
        full-layer) part "$name" "$limit" log.txt bash -c "run_full 9 layer" ;;
        full-module) part "$name" "$limit" log.txt bash -c "run_full 6 module" ;;
        full-step) part "$name" "$limit" log.txt bash -c "run_full 6 step" ;;
        full-memory) part "$name" "$limit" log.txt bash -c "run_full 4 memory overhead" ;;
        fit)
            if [ "$tiny" = 1 ]; then
                note fit skipped 0 "there are no rows of a GPU of such sizes"
            else
                part fit "$limit" log.txt bash -c run_fit
            fi
            ;;
        *) part "$name" "$limit" log.txt bash -c "run_${name//-/_}" ;;
    esac
done
for figure in "$out"/*/*.png; do # beside the summary, where one looks for them
    [ ! -e "$figure" ] || cp "$figure" "$out/$(basename "$(dirname "$figure")")-$(basename "$figure")"
done

summary() { # what decides, then the tables
    "$python" -m trigru.bench.report.summary "$out" || return
    [ -e "$out/rows.jsonl" ] || return 0
    first summary > "$scratch/first.md" && cat "$out/summary.md" >> "$scratch/first.md" &&
        cp "$scratch/first.md" "$out/summary.md"
}
export -f summary
end=""
part summary 120 log.txt bash -c summary || {
    printf '# Benchmarks\n\nThe summary could not be made; what ran:\n\n'
    cat "$out/parts.tsv"
} > "$out/summary.md"
echo "$out/summary.md"
exit "$failed"
