#!/usr/bin/env bash
# Load test: PUT 2,000 things, GET them back, check every answer, and show how fast that was.
#
#   bench/load.sh [URL]        without URL: http://127.0.0.1:8000, and no other place
#
# Needs curl and nothing else. Where wrk or hey is on the PATH, a run for throughput follows. The things expire 10 minutes
# later. Exit status: 1 when an answer was wrong or did not come, 2 when used wrongly. Ends within a minute.
set -euo pipefail

things=2000   # as many as in the article's load test
many=32       # connections, for throughput, and for a server that is far away
far_ms=5      # one whose answers take longer than this
limit_s=20    # for all the PUTs, and for all the GETs
run_s=3       # of wrk or hey, for PUT and for GET
bar='#' thin='.'
case ${LC_ALL:-${LC_CTYPE:-${LANG:-}}} in *UTF-8* | *utf8*) bar='█' thin='▏' ;; esac
export LC_ALL=C

fail() {
  echo "load.sh: $1" >&2
  exit "${2:-1}"
}

[[ $# -le 1 ]] || fail "usage: bench/load.sh [URL]" 2
url=${1:-http://127.0.0.1:8000}
url=${url%/}
[[ $url != *[[:space:]\"\\]* && $url =~ ^https?://[^/?#]+(/[^?#]*)?$ ]] || fail "not a URL that starts with http:// or https://: $url" 2
base=${BASH_REMATCH[1]:-}
command -v curl >/dev/null || fail "curl is not on the PATH"

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d)
mkdir "$work/PUT" "$work/GET"
pid=
trap '[[ -z $pid ]] || kill "$pid" 2>/dev/null || :; rm -rf "$work"' EXIT
trap 'exit 130' HUP INT PIPE TERM
space=load-test-$$-$RANDOM # the namespace of this run

# -q: without ~/.curlrc; and no proxy stands between us and this machine.
options=(--globoff --silent --show-error --noproxy "127.0.0.1,localhost,::1" --max-time 5)
second() { # URL: status and seconds of its second GET, when the connection is there
  curl -q "${options[@]}" -o /dev/null -o /dev/null -w '%{http_code} %{time_total}\n' "$1" "$1" 2>"$work/error" | tail -n 1
}
answer=$(second "$url/$space/0") || fail "no answer from $url: $(head -n 1 "$work/error"). Is the server running? (make run)"
[[ $answer == 404* ]] || fail "nothing can be at $url/$space/0 yet, but it answers ${answer% *}, not 404: is this a kvstore?"
connections=1
awk -v s="${answer#* }" -v far="$far_ms" 'BEGIN { exit !(s * 1000 > far) }' && connections=$many

thing() { # NUMBER: a value of its own for each, so that an answer meant for another is seen
  thing="{\"number\":$1,\"text\":\"thing-$1\"}"
}

config() { # METHOD: the requests, as curl's config file
  local i
  for ((i = 1; i <= things; i++)); do
    ((i == 1)) || echo next
    if [[ $1 == PUT ]]; then
      thing "$i"
      printf 'url = "%s/%s/%d?ttl=10m"\nrequest = PUT\nheader = "Content-Type: application/json"\ndata = "%s"\n' \
        "$url" "$space" "$i" "${thing//\"/\\\"}"
    else
      printf 'url = "%s/%s/%d"\n' "$url" "$space" "$i"
    fi
    printf 'output = "%s/%s/%d"\nwrite-out = "%d %%{http_code} %%{time_total}\\n"\n' "$work" "$1" "$i" "$i"
    printf 'globoff\nnoproxy = "127.0.0.1,localhost,::1"\nmax-time = 10\n'
  done
}

watch() { # PID: end it when the time is up; itself ends on SIGTERM
  local nap
  trap 'kill "$nap"; exit 0' TERM
  sleep "$limit_s" &
  nap=$!
  wait "$nap"
  kill "$1"
}

send() { # METHOD: all requests, by one curl that keeps its connections
  local dog parallel=()
  ((connections == 1)) || parallel=(--parallel --parallel-max "$connections")
  config "$1" >"$work/config"
  curl -q --silent ${parallel[@]+"${parallel[@]}"} --config "$work/config" >"$work/$1.times" 2>"$work/error" &
  pid=$!
  watch "$pid" >/dev/null 2>&1 &
  dog=$!
  TIMEFORMAT=%3R
  { time wait "$pid" 2>/dev/null || :; } 2>"$work/$1.wall"
  pid=
  kill "$dog" 2>/dev/null || :
  wait "$dog" 2>/dev/null || :
}

check() { # METHOD STATUS: every answer; fails where one is wrong
  local number status seconds answer wrong=0 right=0 example=
  while read -r number status seconds; do
    answer=
    [[ ! -e $work/$1/$number ]] || IFS= read -r -d '' answer <"$work/$1/$number" || :
    thing "$number"
    if [[ $status == "$2" && ${answer//[[:space:]]/} =~ ^"${thing%\}}",\"ttl\":[0-9]+\}$ ]]; then
      right=$((right + 1))
    else
      wrong=$((wrong + 1))
      example=${example:-"thing $number: status $status, body '${answer:0:200}'"}
    fi
  done <"$work/$1.times"
  ((right == things)) || fail "$1: of $things answers $right were right, $wrong wrong, $((things - right - wrong)) missing
  ${example:-the others did not come within $limit_s s}"
}

send PUT
check PUT 201
send GET
check GET 200

commas() { # a number with its thousands set apart
  awk -v n="$1" 'BEGIN { s = sprintf("%.0f", n); while (s ~ /^[0-9]{4}/ || length(s) > 3) { r = "," substr(s, length(s) - 2) r; s = substr(s, 1, length(s) - 3) } print s r }'
}

echo "$(commas "$things") things at $url: every answer right"
echo
printf '%-26s %12s %9s %9s %9s %9s\n' "" "requests/s" "p50 ms" "p90 ms" "p99 ms" "max ms"
for method in PUT GET; do
  sort -n -k 3 "$work/$method.times" >"$work/$method.sorted"
  figures=$(awk '{ t[NR] = $3 * 1000 }
    function at(p) { i = int(NR * p + 0.999999); return t[i < 1 ? 1 : i] }
    END { printf "%9.2f %9.2f %9.2f %9.2f", at(0.5), at(0.9), at(0.99), t[NR] }' "$work/$method.sorted")
  rate=$(awk -v n="$things" '{ print n / ($1 > 0 ? $1 : 0.001) }' "$work/$method.wall")
  printf '%-26s %12s %s\n' "$method, curl, $connections at a time" "$(commas "$rate")" "$figures"
done

throughput() { # METHOD: requests/s, p50, p99 at many connections, by wrk or else hey; fails where it saw an error
  local output wanted
  thing 1
  if [[ $tool == wrk ]]; then
    if [[ $1 == PUT ]]; then
      output=$(wrk -t1 -c"$many" -d"${run_s}s" --latency -s "$here/put.lua" "$url" -- "$base/$space/@?ttl=10m" "$things" "$thing")
    else
      output=$(wrk -t1 -c"$many" -d"${run_s}s" --latency -s "$here/get.lua" "$url" -- "$base/$space/@" "$things")
    fi
    wanted='/Socket errors|Non-2xx/ { bad = $0 }
      function ms(t) { return t ~ /us$/ ? t / 1000 : t ~ /ms$/ ? t + 0 : t * 1000 }
      $1 == "50%" { p50 = ms($2) } $1 == "90%" { p90 = ms($2) } $1 == "99%" { p99 = ms($2) }
      $1 == "Latency" && $2 != "Distribution" { max = ms($4) } $1 == "Requests/sec:" { rate = $2 }'
  else
    if [[ $1 == PUT ]]; then
      output=$(hey -z "${run_s}s" -c "$many" -m PUT -T application/json -d "$thing" "$url/$space/1?ttl=10m")
    else
      output=$(hey -z "${run_s}s" -c "$many" "$url/$space/1")
    fi
    wanted='/Error distribution/ || (/^ *\[[0-9]+\]/ && !/\[20[01]\]/) { bad = bad " " $0 }
      $1 == "50%" { p50 = $3 * 1000 } $1 == "90%" { p90 = $3 * 1000 } $1 == "99%" { p99 = $3 * 1000 }
      $1 == "Slowest:" { max = $2 * 1000 } $1 == "Requests/sec:" { rate = $2 }'
  fi
  awk "$wanted"' END { if (bad || !rate) { print bad ? bad : "no answer"; exit 1 }
    printf "%s %9.2f %9.2f %9.2f %9.2f\n", rate, p50, p90, p99, max }' <<<"$output"
}

tool=$(command -v wrk >/dev/null && echo wrk || { command -v hey >/dev/null && echo hey; } || :)
if [[ $tool ]]; then
  for method in PUT GET; do
    figures=$(throughput "$method") || fail "$tool saw errors under $method: $figures"
    printf '%-26s %12s %s\n' "$method, $tool, $many at a time" "$(commas "${figures%% *}")" "${figures#* }"
  done
else
  echo "(for throughput at $many connections, install wrk or hey)"
fi

echo
printf '%-13s %-38s %s\n' "Latency, curl" "PUT" "GET"
awk -v bar="$bar" -v thin="$thin" '
  BEGIN { for (power = 0.01; power < 100000; power *= 10) { n = split("1 1.5 2 3 5 7", step); for (i = 1; i <= n; i++) top[++tops] = step[i] * power } }
  function length_of(n) { return int(n * 30 / most + 0.5) }
  function cell(n,  s, i) { for (i = 0; i < length_of(n); i++) s = s bar; return n ? (s ? s : thin) " " n : "" }
  function blanks(n) { return 39 - (n ? (length_of(n) ? length_of(n) : 1) + 1 + length(n "") : 0) }
  { ms = $3 * 1000; for (b = 1; b < tops && ms > top[b]; b++); if (NR == 1 || b < low) low = b; if (b > high) high = b
    file = FILENAME ~ /PUT/ ? "PUT" : "GET"; if (++count[file, b] > most) most = count[file, b] }
  END { for (b = low; b <= high; b++) {
      put = count["PUT", b] + 0; get = count["GET", b] + 0
      printf "<= %6g ms  %s%*s%s\n", top[b], cell(put), get ? blanks(put) : 0, "", cell(get) } }
' "$work/PUT.times" "$work/GET.times"
