#!/bin/bash
# The last line of a job's script: decide whether the job comes back, have it requeued, then say so.
#
#     bash CODE/launch/on_exit.sh RUN STAGE CODE RETRIES
#
# CODE is the exit code of the stage, or of what failed before it; this ends with the same one. It
# runs on the job's host with bash, coreutils, sed and grep: neither Python nor a container, which
# may be what has failed. It reads what a rank left in RUN/launch/outcomes (launch/outcome.py).
#
# Slurm brings a job back by itself only if the job still runs when its grace is over, or if it
# loses a node. One that saved and left in good time counts as done, so it must be requeued from
# here, or it is lost. A job that Slurm no longer calls RUNNING is being cancelled, or Slurm requeues
# it already: a request would bring a cancelled job back.
#
# Measured with Slurm 22.05: at preemption the steps get SIGTERM, this shell nothing; at the time
# limit's --signal neither; at scancel, at the limit, at the end of the grace and after `scontrol
# requeue` this shell and its children get SIGTERM, and SIGKILL after KillWait (30 s by default).

run=$1 stage=$2 code=$3 retries=$4
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
    local left line value
    verdict='' signum='' rank='' left_reason=''
    [[ -f $run/launch/outcomes/$job ]] || return
    IFS= read -r -d '' -n 5000 left <"$run/launch/outcomes/$job"
    [[ $'\n'$left == *$'\n'"restart=$restart"$'\n'* ]] || return
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

last_step() {  # the step of the newest checkpoint, 0 where there is none
    local name=''
    [[ -f $run/checkpoints/latest ]] && read -r -n 100 name <"$run/checkpoints/latest"
    [[ $name =~ ^step_([0-9]{8,18})$ ]] && echo "$((10#${BASH_REMATCH[1]}))" || echo 0
}

own_step() {  # the step of the newest checkpoint that this job saved: another may train the run too
    local path step own=0
    for path in "$run"/checkpoints/step_*; do
        [[ ${path##*/} =~ ^step_([0-9]{8,18})$ && -f $path/COMPLETE ]] || continue
        step=$((10#${BASH_REMATCH[1]}))
        ((step > own)) && grep -aqE "\"job\": ?\"$job\"" "$path/COMPLETE" && own=$step
    done
    echo "$own"
}

failures() {  # SAVED: count this job's failures since it saved its newest checkpoint, that of SAVED
    local at count=0
    [[ -f $counted ]] || { echo 0; return; }
    while read -r at; do
        [[ $at =~ ^[0-9]{1,18}$ ]] && ((10#$at >= $1)) && ((count++))
    done <"$counted"
    echo "$count"
}

log_of_this_start() {  # the end of the job's log, after the line that an earlier start ended with
    [[ -f /proc/$$/fd/2 ]] || return
    tail -c 50000 "/proc/$$/fd/2" | tr '\000' ' ' | sed 's|^[^ ]*/slurm_script: ||' |
        sed -E '/^(requeued|failed|stopped|gave up) \(|^requeue refused: |\*\*\* JOB [0-9]+ ON/h;//!H;$!d;x' |
        sed 1d
}

telling_line() {  # of a log: the last line that names an error, else the last one; none of those
    # that only say that a task has ended
    grep -avE -e '^[[:space:]]*$|^srun: error: .*tasks? [0-9,-]+: |\*\*\* STEP |^Try "srun' \
        -e '^srun: (launch/slurm|got SIG|Job |Step created|[Ff]orc|First task|[Tt]erminating|Warn)' |
        sed -nE '/error|fatal|fail|not found|no such|denied|cannot|unable|exception|invalid|unrecognized/I{p;h};$!d;x;/./d;x;p' |
        tail -n 1
}

failure_reason() {  # what a rank left, else the signal that killed one, else what the log says
    local said
    if [[ $left_reason ]]; then
        printf 'rank %s: %s' "$rank" "$left_reason"
    elif ((code > 128)) && said=$(kill -l "$((code - 128))" 2>/dev/null) && [[ $said ]]; then
        printf 'killed by SIG%s' "$said"
        said=$(log_of_this_start | grep -ai 'oom' | tail -n 1)
        printf '%s' "${said:+: $said}"
    else
        said=$(log_of_this_start | telling_line)
        printf '%s' "${said:-exit code $code}"
    fi | clean
}

note() {  # EVENT REASON [KEY VALUE]: append a line as launch/record/events.py reads it
    local file=$run/launch/events.jsonl line
    local reason=${2//\\/\\\\}
    line="{\"time_s\": $(date +%s.%1N), \"event\": \"$1\", \"stage\": \"$stage\""
    line+=", \"step\": $(last_step)${3:+, \"$3\": $4}, \"reason\": \"${reason//\"/\\\"}\""
    line+=", \"job\": \"$job\", \"restart\": $restart"
    line+=", \"nodes\": \"${SLURM_JOB_NODELIST:-$HOSTNAME}\"}"
    [[ ! -L $file && (-f $file || ! -e $file) ]] && printf '%s\n' "$line" >>"$file"
}

end() {  # EVENT REASON: the job does not come back by itself, or not from here
    note "$1" "$2"
    echo "$1${2:+ ($2)}"
}

requeue() {  # EVENT REASON SENTENCE [KEY VALUE]: have the job requeued, then say why
    local answer
    if answer=$(ask scontrol requeue "$job"); then
        note "$1" "$2" "$4" "$5"
        echo "$3"
    else
        answer=$(tail -n 1 <<<"$answer" | clean)
        # Slurm itself brings back a preempted job, if the job still runs when its grace is over
        [[ -z $state && $signum == "$TERM" ]] && sleep 120
        note "requeue refused" "$answer; ${1/requeued/stopped}: $2"
        echo "requeue refused: $answer; submit the run again, and it goes on at step $(last_step)"
    fi
}

come_back() {  # REASON: requeue; this is no failure
    requeue requeued "$1" "requeued ($1)"
}

retry() {  # requeue, unless the job has failed too often since its newest checkpoint
    local reason saved count
    reason=$(failure_reason) saved=$(own_step)
    count=$(failures "$saved")
    # Counted before it is requeued: this shell may be killed between. Where it cannot be counted
    # (a full disk), Slurm's own count of restarts limits the tries
    if ! { echo "$saved" >>"$counted" && sync "$counted"; } 2>/dev/null; then
        ((count < restart)) && count=$restart
    fi
    if ((count < retries)); then
        requeue failed "$reason" "failed ($reason); requeued, try $((count + 1)) of $retries" \
            saved "$saved"
    else
        end "gave up" "$reason"
    fi
}

has_happened() {  # FIELD: whether Slurm has done this to the job since this start of it
    local at
    at=$(field "$1")
    [[ -n $at && $at != None && $at != N/A && $at != Unknown && ! $at < $(field StartTime) ]]
}

decide() {
    if [[ $code == 0 ]]; then
        note finished ""
    elif [[ $signum == "$INT" || $code == $((128 + INT)) ]]; then  # Ctrl-C
        end stopped SIGINT
    elif [[ -n $state && $state != RUNNING ]]; then
        has_happened PreemptTime && state="$state; it was preempted, and Slurm itself requeues it"
        end stopped "job is $state"
    elif [[ $signum == "$USR2" || $code == $((128 + USR2)) ]]; then  # before Python could catch it
        come_back "time limit"
    elif has_happened PreemptTime; then
        come_back preempted
    # srun also sends SIGTERM when a rank has crashed; then no rank has stopped in order
    elif [[ $verdict == stopped || $code == "$STOPPED" || (-n $signum && -z $state) ]]; then
        come_back "$([[ $signum ]] && echo "SIG$(kill -l "$signum")" || echo stopped)"
    elif [[ $verdict == refused ]]; then
        end "gave up" "$(failure_reason)"
    # Once for each suspension: time has gone on for the ranks' timeouts, which is no failure
    elif has_happened SuspendTime; then
        come_back "was suspended; $(failure_reason)"
    else
        retry
    fi
}

[[ -d $run/launch/outcomes ]] || mkdir -p "$run/launch/outcomes"
counted=$run/launch/outcomes/$job.failures
read_outcome
about='' state=''
if [[ $code != 0 && $signum != "$INT" ]] && about=$(ask scontrol show job -o "$job"); then
    about=" ${about%%$'\n'*}"
    about=${about%% Command=*}  # names of files follow, which may hold anything
    state=$(field JobState)
fi
decide
rm -f "$run/launch/outcomes/$job"
exit "$code"
