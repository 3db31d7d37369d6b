#!/bin/bash
# The last line of a job's script: decide whether the job comes back, have it requeued, then say so.
#
#     bash -c "$on_exit" on_exit RUN STAGE CODE RETRIES [RUN...]
#
# The script of the job keeps this text from its start on: when the job ends, the folder may be gone.
# CODE is the exit code of the stage, or of what failed before it; this ends with the same one. It
# runs on the job's host with bash, coreutils, sed and grep: neither Python nor a container, which
# may be what has failed. It reads what a rank left in RUN/launch/outcomes (launch/outcome.py). Runs
# that are packed into one job come back together, while one of them has not finished.
#
# Slurm brings a job back by itself only if the job still runs when its grace is over, or if it
# loses a node. One that saved and left in good time counts as done, so it must be requeued from
# here, or it is lost. So must one that is ended at its time limit or by PreemptMode=CANCEL.
#
# Measured with Slurm 22.05: at preemption the steps get SIGTERM, this shell nothing; at the time
# limit's --signal neither; at scancel, at the limit, at the end of the grace and after `scontrol
# requeue` this shell and its children get SIGTERM, and SIGKILL after KillWait (30 s by default).

run=$1 stage=$2 code=$3 retries=$4
runs=("$1" "${@:5}")
export LC_ALL=C
trap '' TERM USR2  # ignored by the commands below, too
unset SLURM_CLUSTERS SLURM_TIME_FORMAT  # they change what scontrol answers
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
restart=${SLURM_RESTART_COUNT:-0}
TRIES=5 WAIT_S=3  # a busy controller answers late, or not the first time
INT=2 USR2=12 TERM=15 STOPPED=75
if ! command -v scontrol >/dev/null; then  # it may be beside srun, but not on this PATH
    PATH=$PATH:$(dirname "$(readlink -f "$(command -v srun)")")
fi

ask() {  # COMMAND...: call it until it succeeds; prints its output, or its last refusal
    local attempt answer
    command -v "$1" >/dev/null || { echo "no $1 on this node"; return 1; }
    for ((attempt = 1; attempt <= TRIES; attempt++)); do
        ((attempt > 1)) && sleep "$WAIT_S"
        answer=$(timeout 20 "$@" 2>&1) && break
    done
    printf '%s\n' "$answer"
    ((attempt <= TRIES))
}

clean() {  # one line of printable UTF-8 of at most 600 bytes, from any bytes
    tr '\000-\037\177' ' ' | head -c 600 | sed -E '
        s/(\xC2[\xA0-\xBF]|[\xC3-\xDF][\x80-\xBF]|\xE0[\xA0-\xBF][\x80-\xBF]|[\xE1-\xEC\xEE\xEF][\x80-\xBF]{2}|\xED[\x80-\x9F][\x80-\xBF]|\xF0[\x90-\xBF][\x80-\xBF]{2}|[\xF1-\xF3][\x80-\xBF]{3}|\xF4[\x80-\x8F][\x80-\xBF]{2})|[\x80-\xFF]/\1/g
        s/ +$//'
}

field() {  # NAME: what Slurm says of this job; nothing where it does not answer
    local rest=${about##* "$1"=}
    [[ $rest != "$about" ]] && printf '%s' "${rest%% *}"
}

read_outcome() {  # set verdict, signum, rank and reason as a rank of this start has left them
    local left line value outcome=$run/launch/outcomes/$job.$restart
    verdict='' signum='' rank='' left_reason=''
    [[ -f $outcome ]] || return
    IFS= read -r -d '' -n 5000 left <"$outcome"
    while IFS= read -r line; do
        value=${line#*=}
        case ${line%%=*} in
            verdict) verdict=$value ;;
            signal) [[ $value =~ ^[1-9][0-9]?$ ]] && signum=$value ;;
            rank) rank=$value ;;
            reason) left_reason=$value ;;
        esac
    done <<<"$left"
}

read_outcomes() {  # of all runs: that of one that failed, else was stopped, else was refused
    local -A weights=([refused]=1 [stopped]=2 [failed]=3)
    local worst=${runs[0]} most=0 weight first=''
    for run in "${runs[@]}"; do
        read_outcome
        first=${first:-$signum} weight=${weights[${verdict:-none}]:-0}
        ((weight > most)) && most=$weight worst=$run
    done
    run=$worst
    read_outcome
    signum=$first
}

has_finished() {  # whether a run that shares its job has ended with success in it: it noted so
    ((${#runs[@]} > 1)) && [[ ! -f $run/launch/outcomes/$job.$restart ]] || return
    grep -aF "\"job\": \"$job\"" "$run/launch/events.jsonl" 2>/dev/null | tail -n 1 |
        grep -aqF '"event": "finished"'
}

last_step() {  # the step of the newest checkpoint, 0 where there is none; of folds the sum
    local pointer name sum=0
    for pointer in "$run"/{,fold-*/}checkpoints/latest; do
        name=''
        [[ -f $pointer ]] && read -r -n 100 name <"$pointer"
        [[ $name =~ ^step_([0-9]{8,18})$ ]] && ((sum += 10#${BASH_REMATCH[1]}))
    done
    echo "$sum"
}

own_step() {  # the step of the newest checkpoint that this job saved: another may train the run too
    local folder path step own sum=0
    for folder in "$run"/{,fold-*/}checkpoints; do  # a trial of a study may have folds
        own=0
        for path in "$folder"/step_*; do
            [[ ${path##*/} =~ ^step_([0-9]{8,18})$ && -f $path/COMPLETE ]] || continue
            step=$((10#${BASH_REMATCH[1]}))
            ((step > own)) && grep -aqE "\"job\": ?\"$job\"" "$path/COMPLETE" && own=$step
        done
        ((sum += own))
    done
    echo "$sum"
}

saved_by_all() {  # the sum of these steps: it grows with each checkpoint of any run
    local run sum=0
    for run in "${runs[@]}"; do ((sum += $(own_step))); done
    echo "$sum"
}

log_of_this_start() {  # the end of the job's log, after the line that an earlier start ended with
    [[ -f /proc/$$/fd/2 ]] || return
    tail -c 50000 "/proc/$$/fd/2" | tr '\000' ' ' | sed 's|^[^ ]*/slurm_script: ||' |
        sed -E '/^(requeued|failed|stopped|gave up) \(|^requeue refused: |\*\*\* JOB [0-9]+ ON/h;//!H;$!d;x' |
        sed 1d
}

last_line() {  # of the log of the task that failed, but for lines that only say that it has ended
    local log of_task task
    log=$(log_of_this_start) of_task=$(readlink "/proc/$$/fd/2")
    task=$(sed -nE '/^srun: error: .*tasks? ([0-9]+).*/{s//\1/p;q}' <<<"$log")
    of_task=${of_task/%_0_log.out/_${task:-0}_log.out}
    [[ ${task:-0} != 0 && -f $of_task ]] && log+=$'\n'$(tail -c 50000 "$of_task" | tr '\000' ' ')
    grep -avE '^[[:space:]]*$|\*\*\* |^Try "srun|^srun: ([A-Zgl]|forc|error: .*tasks? [0-9])' \
        <<<"$log" | tail -n 1
}

failure_reason() {  # what a rank left, else the signal that killed one, else what the log says
    local said
    if [[ $left_reason ]]; then
        ((${#runs[@]} > 1)) && printf '%s: ' "${run##*/}"
        printf 'rank %s: %s' "$rank" "$left_reason"
    elif ((code > 128)) && said=$(kill -l "$((code - 128))" 2>/dev/null) && [[ $said ]]; then
        printf 'killed by SIG%s' "$said"
        said=$(log_of_this_start | grep -ai 'oom' | tail -n 1)
        printf '%s' "${said:+: $said}"
    else
        said=$(last_line)
        printf '%s' "${said:-exit code $code}"
    fi | clean
}

note() {  # EVENT REASON [SAVED]: tell each run of the job; one that failed by itself is told so
    local run verdict signum rank left_reason reason event
    for run in "${runs[@]}"; do
        event=$1 reason=$2
        has_finished && continue
        if ((${#runs[@]} > 1)) && read_outcome && [[ $left_reason ]]; then
            reason=$(printf 'rank %s: %s' "$rank" "$left_reason" | clean)
            event=${event/requeued/failed}
        fi
        note_one "$event" "$reason" "${3:+$(own_step)}"
    done
}

note_one() {  # EVENT REASON [SAVED]: append a line as launch/record/events.py reads it
    local file=$run/launch/events.jsonl line
    local reason=${2//\\/\\\\}
    line="{\"time_s\": $(date +%s.%1N), \"event\": \"$1\", \"stage\": \"$stage\""
    line+=", \"step\": $(last_step)${3:+, \"saved\": $3}, \"reason\": \"${reason//\"/\\\"}\""
    line+=", \"job\": \"$job\", \"restart\": $restart"
    line+=", \"nodes\": \"${SLURM_JOB_NODELIST:-$HOSTNAME}\"}"
    [[ ! -L $file && (-f $file || ! -e $file) ]] && printf '%s\n' "$line" >>"$file"
}

end() {  # EVENT REASON: the job does not come back by itself, or not from here
    note "$1" "$2"
    echo "$1${2:+ ($2)}"
}

request() {  # EVENT REASON SAVED SENTENCE: have the job requeued, then say why
    local answer
    if answer=$(ask scontrol requeue "$job"); then
        note "$1" "$2" "$3"
        echo "$4"
    else
        answer=$(tail -n 1 <<<"$answer" | clean)
        # Slurm itself brings back a preempted job, if the job still runs when its grace is over
        [[ -z $state && $signum == "$TERM" ]] && sleep 120
        note "requeue refused" "$answer; ${1/requeued/stopped}: $2"
        echo "requeue refused: $answer; submit the run again, and it goes on at step $(last_step)"
    fi
}

# EVENT REASON: have the job requeued, unless that was too often in vain. A failure counts, and all
# that comes back without a newer checkpoint of this job (a time limit shorter than the start-up),
# but for preemption. Each is a line: the step of that checkpoint, and "free" where it does not count
bring_back() {
    local at free reason=$2 count=0 last=0 saved
    saved=$(saved_by_all)
    while read -r at free; do
        [[ $at =~ ^[0-9]{1,18}$ ]] || continue
        at=$((10#$at))
        ((at > last)) && last=$at
        [[ $free ]] || ((at < saved)) || ((++count))
    done < <(cat "$counted" 2>/dev/null)
    free=''  # the last line may be half a one
    [[ $1 == requeued ]] && { ((saved > last)) || has_happened PreemptTime; } && free=free
    # Recorded before it is requeued: this shell may be killed between. Where it cannot be recorded
    # (a full disk), Slurm's own count of restarts limits the tries
    if ! { echo "$saved $free" >>"$counted" && sync "$counted"; } 2>/dev/null; then
        ((count < restart)) && count=$restart
        has_happened PreemptTime || free=''
    fi
    [[ $1 == requeued && ! $free ]] && reason+=", without a newer checkpoint"
    if [[ $free ]]; then
        request "$1" "$reason" "$saved" "requeued ($reason)"
    elif ((count < retries)); then
        request "$1" "$reason" "$saved" \
            "${1/requeued/stopped} ($reason); requeued, try $((count + 1)) of $retries"
    else
        end "gave up" "$reason"
    fi
}

has_happened() {  # FIELD: whether Slurm has done this to the job since this start of it
    local at
    at=$(field "$1")
    [[ -n $at && $at != None && $at != N/A && $at != Unknown && ! $at < $(field StartTime) ]]
}

is_settled() {  # whether Slurm requeues the job, or it is cancelled: a request would bring it back
    case $state in
        '' | RUNNING | CONFIGURING | RESIZING | SIGNALING | STAGE_OUT | SUSPENDED) return 1 ;;
    esac
    if has_happened PreemptTime; then
        [[ " $(ask scontrol show partition -o "$(field Partition)") " != *" PreemptMode=CANCEL "* ]]
    else
        [[ $(field Reason) != TimeLimit ]]  # the limit itself, where the save took too long
    fi
}

decide() {
    if [[ $code == 0 ]]; then
        note finished ""
    elif [[ $signum == "$INT" || $code == $((128 + INT)) ]]; then  # Ctrl-C
        end stopped SIGINT
    elif is_settled; then
        has_happened PreemptTime && state="$state; it was preempted, and Slurm itself requeues it"
        end stopped "job is $state"
    elif has_happened PreemptTime; then
        bring_back requeued preempted
    # The second is the code of a task that Python could not catch it in yet
    elif [[ $signum == "$USR2" || $code == $((128 + USR2)) || $(field Reason) == TimeLimit ]]; then
        bring_back requeued "time limit"
    # srun also sends SIGTERM when a rank has crashed; then no rank has stopped in order
    elif [[ $verdict == stopped || $code == "$STOPPED" || (-n $signum && -z $state) ]]; then
        bring_back requeued "$([[ $signum ]] && echo "SIG$(kill -l "$signum")" || echo stopped)"
    elif [[ $verdict == refused ]]; then
        end "gave up" "$(failure_reason)"
    elif has_happened SuspendTime; then  # time has gone on for the ranks' timeouts: no failure
        bring_back requeued "was suspended; $(failure_reason)"
    else
        bring_back failed "$(failure_reason)"
    fi
}

counted=$run/launch/outcomes/$job.requeues
for run in "${runs[@]}"; do
    [[ -d $run/launch/outcomes ]] || mkdir -p "$run/launch/outcomes"
done
read_outcomes
about='' state=''
if [[ $code != 0 && $signum != "$INT" ]] && about=$(ask scontrol show job -o "$job"); then
    about=" ${about%%$'\n'*}"
    about=${about%% Command=*}  # names of files follow, which may hold anything
    state=$(field JobState)
fi
decide
for run in "${runs[@]}"; do
    rm -f "$run/launch/outcomes/$job".[0-9]*  # those, too, of starts whose script was killed
done
exit "$code"
