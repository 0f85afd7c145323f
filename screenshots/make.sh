#!/usr/bin/env bash
# Runs the demo through in a real window under Xvfb and takes pictures of every panel.
#
#   screenshots/make.sh [FOLDER]
#
# The pictures of the README go beside this script; with a FOLDER, every panel in light and dark, at 1280×800 and
# 1024×700, and the phone's width, goes there. Needs Xvfb, xdotool and ImageMagick (Debian: xvfb xdotool imagemagick)
# and a Vulkan driver; SMOLFORGE names the program (default: the one of `cargo build --release`), TASK a folder that
# `demo --task --device cpu --out runs/task` has made (default: it is made, which takes ten minutes).
set -euo pipefail
cd "$(dirname "$0")/.."

here=$PWD/screenshots
all=${1:+$(mkdir -p "$1" && cd "$1" && pwd)}
for tool in Xvfb xdotool import convert; do
    command -v "$tool" >/dev/null || { echo "make.sh: $tool is missing (Debian: apt-get install xvfb xdotool imagemagick)" >&2; exit 1; }
done
if [ -z "${SMOLFORGE:-}" ]; then
    cargo build --release --workspace --bins
    SMOLFORGE=${CARGO_TARGET_DIR:-target}/release/smolforge
fi
program=$(realpath "$SMOLFORGE")

work=$(mktemp -d)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$work"' EXIT
export HOME=$work/home XDG_DATA_HOME=$work/home/data WINIT_UNIX_BACKEND=x11
unset WAYLAND_DISPLAY
mkdir -p "$XDG_DATA_HOME/smolforge" "$work/place"

# Waits until a command succeeds; fails after so many seconds, or when the program has ended.
until_true() {
    local seconds=$1
    shift
    for _ in $(seq "$((seconds * 2))"); do
        "$@" >/dev/null 2>&1 && return 0
        kill -0 "$window" 2>/dev/null || { echo "make.sh: the program has ended" >&2; cat "$work/window.log" >&2; exit 1; }
        sleep 0.5
    done
    echo "make.sh: waited $seconds s in vain for: $*" >&2
    exit 1
}

# Opens the window on a screen of its own: width, height, theme (Light or Dark), form as JSON.
open_window() {
    local size=$1x$2 form
    form=${4//\"/\\\\\\\"}
    printf '{"app":"\\"%s\\""}' "$form" >"$XDG_DATA_HOME/smolforge/app.ron"
    exec 3<>"$work/display"
    Xvfb -displayfd 3 -screen 0 "${size}x24" -nolisten tcp -noreset 2>/dev/null &
    screen=$!
    pids+=("$screen")
    read -r -u 3 display
    exec 3<&-
    export DISPLAY=:$display
    (cd "$work/place" && exec "$program") 2>"$work/window.log" &
    window=$!
    pids+=("$window")
    until_true 120 xdotool search --onlyvisible --name '^smolforge$'
    id=$(xdotool search --onlyvisible --name '^smolforge$' | head -n 1)
    xdotool windowmove "$id" 0 0 windowsize --sync "$id" "$1" "$2" windowfocus "$id"
    sleep 5
    [ "$1" -lt 700 ] || choose_theme "$1" "$3"
}

# The three words at the right end of the tabs: system, dark, light.
choose_theme() {
    local x=$(($1 - 30))
    [ "$2" = Light ] || x=$(($1 - 82))
    xdotool mousemove "$x" 14 sleep 1 click 1 sleep 1 mousemove "$(($1 / 2))" 4
    sleep 2
}

close_window() {
    kill "$window"
    wait "$window" 2>/dev/null || true
    kill "$screen"
    wait "$screen" 2>/dev/null || true
}

keys() {
    xdotool windowfocus "$id" key --clearmodifiers "$1"
    sleep 3
}

# Takes a picture of 128 colours: text stays sharp and a file is small.
picture() {
    import -window root "$work/picture.png"
    convert "$work/picture.png" +dither -colors 128 -strip -define png:compression-level=9 "PNG8:$1"
    echo "$1: $(wc -c <"$1") bytes"
}

updates() {
    [ "$(grep -c '"event":"step"' "$work/place/runs/demo/run/events.jsonl" 2>/dev/null || echo 0)" -ge "$1" ]
}

written() {
    [ -e "$work/place/runs/demo/export/model.safetensors" ]
}

mkfifo "$work/display"
writing='{"compare":true,"second":"SECOND","generate":{"model":"runs/demo/export","alternatives":5,"max_new_tokens":60,"sampling":{"temperature":0.7,"top_k":40}},"selected":["runs/demo/run"]}'

open_window 1280 800 Light '{}'
[ -z "$all" ] || picture "$all/welcome-light-1280.png"
keys ctrl+Return
until_true 900 updates 330
sleep 2
picture "$here/train.png"
until_true 900 written
sleep 30 # the demo's own texts
close_window
second=$(cd "$work/place" && ls -d runs/demo/run/step_* | head -n 1)
writing=${writing/SECOND/$second}

# Rows that a small model learns, and two adapters of it.
rows() {
    local number
    for number in $(seq 48); do
        printf '{"messages":[{"role":"user","content":"[SPEC] What is the gap of part %d?"},{"role":"assistant","content":"%d mm"}]}\n' \
            "$number" $((number % 5 + 1))
        printf '{"messages":[{"role":"user","content":"[STEPS] How do I open part %d?"},{"role":"assistant","content":"Turn the cover %d times, and lift it."}]}\n' \
            "$number" $((number % 3 + 1))
    done
    printf '{"messages":[{"role":"user","content":"[STEPS] How do I clean it?"},{"role":"assistant","content":"%s"}]}\n' \
        "$(printf 'Take a dry cloth. %.0s' $(seq 12))"
}

tune() {
    (cd "$work/place" && "$program" --json finetune --model-name runs/demo/export --train-file rows.jsonl --device cpu \
        --max-seq-length 128 --learning-rate 3e-3 --num-epochs 4 "$@" >/dev/null)
}

tuned() {
    [ "$(grep -c '"event":"step"' "$work/place/$1/events.jsonl" 2>/dev/null || echo 0)" -ge "$2" ]
}

# The parts of fine-tuning: rows, a run, the shelf.
tuning() {
    local width=$1 height=$2 theme=$3 folder=$4 out=runs/shown-$3-$1
    local form='"tune":{"model_name":"runs/demo/export","train_file":"rows.jsonl","max_seq_length":128,"device":"cpu","learning_rate":0.003,"num_epochs":8.0,"target_modules":["q_proj","v_proj","up_proj"],"output_dir":"'$out'"}'
    open_window "$width" "$height" "$theme" "{$form}"
    keys ctrl+2
    [ "$width" -ge 700 ] || { picture "$folder/tune-form-$width.png"; xdotool mousemove 100 44 click 1; }
    sleep 4
    picture "$folder/tune-rows-$theme-$width.png"
    [ "$width" -ge 700 ] || xdotool mousemove 42 44 click 1 sleep 1 # the form has the keys
    keys ctrl+Return
    until_true 120 tuned "$out" 40
    picture "$folder/tune-run-$theme-$width.png"
    close_window
    open_window "$width" "$height" "$theme" "{$form,\"part\":\"Shelf\",\"shelf\":{\"model\":\"runs/demo/export\",\"adapters\":{\"runs/parts\":[true,1.0],\"runs/parts-small\":[false,0.5]},\"question\":\"[SPEC] What is the gap of part 7?\"}}"
    keys ctrl+2
    [ "$width" -ge 700 ] || xdotool mousemove 100 44 click 1
    sleep 2
    keys ctrl+Return
    sleep 10
    picture "$folder/tune-shelf-$theme-$width.png"
    close_window
}

# A task with right answers that is done: its form, and its budget and funnel.
reasoning() {
    local width=$1 height=$2 theme=$3 folder=$4 task=runs/task config
    local questions=$task/seed-1337/questions
    config='"student":"'$task'/student","teacher":"'$task'/teacher","out":"'$task'/seed-1337","seed":1337,"device":"cpu"'
    config+=',"train_file":"'$questions'/train.json","valid_file":"'$questions'/valid.json","shots":"'$task'/shots.json"'
    config+=',"system":"You convert units. Work it out and be brief.","test_questions":150,"max_new_tokens":40,"oversample":4'
    config+=',"sft_dropout":0.0,"sft_learning_rate":0.003,"rft_dropout":0.0,"rft_learning_rate":0.003'
    open_window "$width" "$height" "$theme" "{\"reason\":{\"config\":{$config}}}"
    keys ctrl+3
    [ "$width" -ge 700 ] || picture "$folder/reason-form-$width.png"
    keys ctrl+Return
    sleep 10
    picture "$folder/reason-$theme-$width.png"
    close_window
}

panels() {
    local width=$1 height=$2 theme=$3 folder=$4
    open_window "$width" "$height" "$theme" "$writing"
    [ -z "$all" ] || { keys ctrl+1; picture "$folder/train-$theme-$width.png"; }
    keys ctrl+4
    keys ctrl+Return
    sleep 25
    picture "$folder/generate-$theme-$width.png"
    keys ctrl+5
    sleep 3
    picture "$folder/runs-$theme-$width.png"
    keys ctrl+6
    [ -z "$all" ] || picture "$folder/device-$theme-$width.png"
    close_window
}

rows >"$work/place/rows.jsonl"
if [ -n "${TASK:-}" ]; then
    cp -r "$TASK" "$work/place/runs/task"
else
    (cd "$work/place" && "$program" --json demo --task --out runs/task --device cpu >/dev/null)
fi
tune --output-dir runs/parts
tune --output-dir runs/parts-small --r 4 --num-epochs 1
if [ -n "$all" ]; then
    for theme in Light Dark; do
        panels 1280 800 "$theme" "$all"
        panels 1024 700 "$theme" "$all"
        tuning 1280 800 "$theme" "$all"
        tuning 1024 700 "$theme" "$all"
        reasoning 1280 800 "$theme" "$all"
        reasoning 1024 700 "$theme" "$all"
    done
    tuning 390 800 Light "$all"
    reasoning 390 800 Light "$all"
    open_window 390 800 Light "${writing/\"compare\":true,/}"
    keys ctrl+4
    picture "$all/generate-form-390.png"
    keys ctrl+Return
    sleep 15
    picture "$all/generate-390.png"
    close_window
    cp "$all/generate-Dark-1280.png" "$here/generate.png"
    cp "$all/runs-Light-1280.png" "$here/runs.png"
    cp "$all/tune-rows-Light-1280.png" "$here/tune.png"
    cp "$all/reason-Light-1280.png" "$here/reason.png"
else
    panels 1280 800 Dark "$work"
    tuning 1280 800 Light "$work"
    reasoning 1280 800 Light "$work"
    cp "$work/tune-rows-Light-1280.png" "$here/tune.png"
    cp "$work/reason-Light-1280.png" "$here/reason.png"
    cp "$work/generate-Dark-1280.png" "$here/generate.png"
    cp "$work/runs-Dark-1280.png" "$here/runs.png"
fi
