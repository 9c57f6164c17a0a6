begin() {
	"$DOCKERD" --config-file "$DIR/daemon.json" --host "unix://$DIR/d.sock" --pidfile "$DIR/pid" --data-root "$DIR/root" \
		--exec-root "$DIR/x" --iptables=false --ip6tables=false --bridge=none --storage-driver=overlay2 >daemon.log 2>&1 &
	until curl -fs --unix-socket "$DIR/d.sock" http://docker/_ping >/dev/null 2>&1; do sleep 0.1; done
}
# The API tells of a failure in its last line.
pull() {
	timeout 60 curl -fsS -X POST --unix-socket "$DIR/d.sock" \
		"http://docker/v1.41/images/create?fromImage=${2%:*}&tag=${2##*:}" >"$1.out" || return 1
	cat "$1.out"
	! grep -q '"errorDetail"' "$1.out"
}
