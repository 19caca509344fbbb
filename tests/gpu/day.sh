#!/usr/bin/env bash
# Everything that must be seen on one NVIDIA card, in at most eight minutes, without a network. It leaves one JSON.
#
#   tests/gpu/prepare.sh                        on any machine with the toolkit, or PyPI: makes target/gpu
#   tests/gpu/day.sh                            on the card's machine, in a copy of the tree with target/gpu
#   tests/gpu/prepare.sh --device cpu && tests/gpu/day.sh --device cpu --small      the same on a processor, with a tiny model
#
#   --device NAME     cuda, cuda:N or cpu [default: cuda]
#   --small           a tiny model and few steps in place of the base size at 224 px with a batch of 64
#   --out FILE        the JSON [default: target/gpu/day.json]
#   --only PATTERN    parts whose names match a shell pattern, such as 'steps*'
#   --minutes N       begins nothing after N minutes [default: 8, on a processor 60]
#
# A part that cannot run is in the JSON with its reason, and the others go on. The exit code is 0 if every part ran and every comparison
# kept its bound.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit
export LC_ALL=C

device=cuda small=false minutes= out= only='*'
while [ $# -gt 0 ]; do
    case "$1" in
        --device) device="$2"; shift ;;
        --small) small=true ;;
        --out) out="$2"; shift ;;
        --minutes) minutes="$2"; shift ;;
        --only) only="$2"; shift ;;
        *) sed -n '2,/^set /p' "$0" | sed '/^set /d; s/^# \{0,1\}//'; exit 2 ;;
    esac
    shift
done
kit=target/gpu
[ "$device" = cpu ] && kit=target/gpu-cpu && minutes="${minutes:-60}"
minutes="${minutes:-8}"
out="${out:-$kit/day.json}"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
began=$SECONDS
is_good=true
parts=()

text() { # a string of JSON
    escaped="${1//\\/\\\\}"
    escaped="${escaped//\"/\\\"}"
    escaped="${escaped//$'\n'/ }"
    printf '"%s"' "$(printf %s "$escaped" | tr -d '\000-\037')"
}
part() { # NAME JSON
    parts+=("  $(text "$1"): $2")
    echo "$1: ${2:0:300}" >&2
}
skipped() { # NAME REASON
    is_good=false
    part "$1" "{\"skipped\": $(text "$2")}"
}

# NAME SECONDS COMMAND...: a part that is what the command prints. $memory keeps the card's memory, sampled while it runs.
ask() {
    local name="$1" limit="$2" said code started sampler= peak=null
    shift 2
    # shellcheck disable=SC2053
    [[ "$name" == $only ]] || return 0
    # A processor that is shared may take its time.
    [ "$device" = cpu ] && limit=$((limit * 6))
    if [ $((SECONDS - began)) -ge $((minutes * 60)) ]; then
        skipped "$name" "no time left"
        return 1
    fi
    if [ -n "$samples" ]; then
        nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -i "$number" -lms 50 >"$work/memory" 2>/dev/null &
        sampler=$!
    fi
    started=$(date +%s.%N)
    # A function runs in a shell of its own, for `timeout` starts programs alone.
    if declare -F "$1" >/dev/null; then
        set -- bash -c "$(declare -p vlmerge card device work tiny of_data training); $(declare -f); $1"
    fi
    said="$(timeout "$limit" "$@" 2>"$work/stderr")"
    code=$?
    if [ -n "$sampler" ]; then
        kill "$sampler" 2>/dev/null
        wait "$sampler" 2>/dev/null
        peak=$(sort -n "$work/memory" | tail -1)
        peak=$((${peak:-0} * 1048576))
    fi
    local seconds
    seconds=$(awk -v a="$started" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f", b - a }')
    if [ $code -ne 0 ] || [ -z "$said" ]; then
        is_good=false
        part "$name" "{\"failed\": $(text "$(tail -c 600 "$work/stderr")"), \"code\": $code, \"seconds\": $seconds}"
        return 1
    fi
    case "$said" in *'"ok":false'*) is_good=false ;; esac
    part "$name" "{\"seconds\": $seconds, \"card_memory_peak\": $peak, \"said\": $said}"
}

# The machine.
number="${device#cuda}" number="${number#:}" number="${number:-0}"
samples= libraries_before="${LD_LIBRARY_PATH:-}"
if [ "$device" != cpu ]; then
    command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1 && samples=yes
    if [ -n "$samples" ]; then
        idle=$(nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -i "$number")
        part card "{\"name\": $(text "$(nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv,noheader -i "$number")"), \
\"memory_before\": $((idle * 1048576))}"
    else
        skipped card "nvidia-smi is not there or finds no card: no memory of the card is sampled"
    fi
fi
part machine "{\"kernel\": $(text "$(uname -sr)"), \"processor\": $(text "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)"), \
\"cores\": $(nproc), \"commit\": $(text "$(cat "$kit/commit" 2>/dev/null || echo unknown)")}"

# The programs and what they load: the driver's libcuda, and cuBLAS, cuRAND and NVRTC of the toolkit, which a toolkit, PyTorch's wheels
# or a container may hold.
card="$kit/card" vlmerge="$kit/vlmerge"
if [ ! -e "$card" ] && [ -e "$kit/card.gz" ]; then
    for program in card vlmerge; do gzip -dc "$kit/$program.gz" >"$work/$program" && chmod +x "$work/$program"; done
    card="$work/card" vlmerge="$work/vlmerge"
fi
python=
for name in python3 python; do command -v "$name" >/dev/null && python="$name" && break; done
if [ "$device" != cpu ]; then
    places="/usr/local/cuda/lib64 /usr/local/cuda/targets/x86_64-linux/lib /usr/local/nvidia/lib64 /usr/local/nvidia/lib"
    [ -n "$python" ] && places+=" $("$python" - <<'P' 2>/dev/null
import glob, site, sys
places = [*sys.path, *site.getsitepackages()]
print(*sorted({found for place in places for found in glob.glob(place + "/nvidia/*/lib")}))
P
)"
    for place in $places; do [ -d "$place" ] && LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$place"; done
    export LD_LIBRARY_PATH
fi
libraries="${LD_LIBRARY_PATH:-}"
missing=
if [ -x "$card" ]; then
    missing="$(ldd "$card" 2>&1 | sed -n 's/^[[:space:]]*\([^ ]*\) => not found.*/\1/p' | sort -u | tr '\n' ' ')"
    if [ -n "$missing" ]; then
        ours="the system lacks ${missing% }"
    else
        ours=
    fi
else
    ours="$card is missing: run tests/gpu/prepare.sh"
fi
[ -n "$ours" ] && skipped programs "$ours" || part programs "{\"bytes\": [$(stat -c %s "$card"), $(stat -c %s "$vlmerge")]}"
# torch, which may be missing.
export LD_LIBRARY_PATH="$libraries_before"
torch=
if [ -z "$python" ]; then
    torch="there is no python3"
elif ! found="$("$python" -c 'import torch, safetensors, sys; print(torch.__version__, torch.cuda.is_available())' 2>&1)"; then
    torch="$(printf %s "$found" | tail -1)"
elif [ "$device" != cpu ] && [ "${found##* }" != True ]; then
    torch="torch ${found% *} finds no card"
fi

export LD_LIBRARY_PATH="$libraries"

# Sizes.
tiny=() of_data=() training=()
if $small; then
    batch=4 steps=3
    sizes=(--size custom --blocks 2 --width 64 --attention-heads 2 --fusion-start 1 --patch-size 16 --image-size 48 --text-len 16 --text-table-len 16
        --vocabulary 1000)
    table=16
else
    batch=64 steps=21
    sizes=(--size base)
    table=196
fi
dtypes=(f32 bf16)
# On the processor f64 takes a card's way through the model, and f16 stands in for bf16.
[ "$device" = cpu ] && dtypes=(f64 f16)

if [ -z "$ours" ]; then
    ask device 60 "$card" about "$device"
    for dtype in "${dtypes[@]}"; do
        ask "parity $dtype" 120 "$card" parity "$device" "$dtype" fixtures
    done
    model="$work/model.safetensors"
    if "$vlmerge" -q synth "${sizes[@]}" --layout agnostic --no-sync "$model" >"$work/stderr" 2>&1; then
        for dtype in "${dtypes[@]}"; do
            ask "steps $dtype" 60 "$card" steps "$device" "$dtype" "$model" $batch $steps
            ask "steps $dtype checkpointing" 60 "$card" steps "$device" "$dtype" "$model" $batch $steps checkpointing
        done
    else
        skipped "steps" "no fresh weights: $(tail -c 300 "$work/stderr")"
    fi
fi
if [ -n "$torch" ]; then
    skipped "torch" "$torch"
elif [ ! -e "$work/model.safetensors" ]; then
    skipped "torch" "it trains the weights that vlmerge draws, which did not run"
else
    # torch finds its own libraries.
    export LD_LIBRARY_PATH="$libraries_before"
    torch_dtypes=("${dtypes[@]}")
    [ "$device" = cpu ] && torch_dtypes=(f32 bf16)
    for dtype in "${torch_dtypes[@]}"; do
        for way in eager checkpointing sdpa; do
            ask "torch steps $dtype $way" 60 "$python" tests/gpu/torch_steps.py "$work/model.safetensors" --device "$device" --dtype "$dtype" \
                --batch $batch --steps $steps --way $way --text-table-len $table
        done
    done
fi

export LD_LIBRARY_PATH="$libraries"

# Grams, measuring, and a run that is killed, of the tiny model: the same on the processor and on the device.
tiny=(--tokenizer fixtures/real/vocab.txt --text-table-len 16)
of_data=(--task retrieval --data fixtures/arrow --split val)
training=(-q finetune --task retrieval --init fixtures/ckpt/ufo.safetensors --data fixtures/arrow --tokenizer fixtures/real/vocab.txt
    --set 'model={text_table_len: 16}' --set batch_size=4 --set 'length={steps: 60}' --set 'save={every: {steps: 5}, keep: 20}' --device "$device")
grams() {
    "$vlmerge" -q gram --checkpoint fixtures/ckpt/all_moe.safetensors "${of_data[@]}" "${tiny[@]}" --device "$1" --out "$2" >&2
}
grams_of_both() {
    grams cpu "$work/gram_cpu.safetensors" && grams "$device" "$work/gram.safetensors" &&
        "$card" compare "$work/gram.safetensors" "$work/gram_cpu.safetensors"
}
measured() {
    "$vlmerge" -q evaluate fixtures/ckpt/ufo.safetensors "${of_data[@]}" "${tiny[@]}" --device "$1" --json
}
measured_on_both() {
    local on_cpu on_device
    on_cpu="$(measured cpu)" && on_device="$(measured "$device")" || return
    numbers() { sed -n 's/.*"value": \([-0-9.e]*\),*$/\1/p' | paste -sd,; }
    printf '{"processor": [%s], "device": [%s]}' "$(numbers <<<"$on_cpu")" "$(numbers <<<"$on_device")"
}
killed_and_resumed() {
    local run waited=0
    "$vlmerge" "${training[@]}" --out "$work/whole" >&2 || return
    "$vlmerge" "${training[@]}" --out "$work/killed" >&2 &
    run=$!
    until [ -e "$work/killed/states/step-00000010" ] || [ $waited -ge 600 ]; do
        sleep 0.02
        waited=$((waited + 1))
    done
    kill -KILL $run
    wait $run
    [ -e "$work/killed/model.safetensors" ] && echo "the run ended before it was killed" >&2 && return 1
    "$vlmerge" "${training[@]}" --out "$work/killed" --resume >&2 || return
    "$card" compare "$work/killed/model.safetensors" "$work/whole/model.safetensors"
}
if [ -z "$ours" ]; then
    ask grams 60 grams_of_both
    ask evaluation 60 measured_on_both
    ask "kill and resume" 120 killed_and_resumed
fi

part seconds "$((SECONDS - began))"
part ok "$is_good"
{
    echo "{"
    printf '%s' "${parts[0]}"
    printf ',\n%s' "${parts[@]:1}"
    printf '\n}\n'
} >"$out.partial" && mv "$out.partial" "$out"
echo "$out" >&2
$is_good
