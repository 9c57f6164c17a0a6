begin() {
	"$DOCKERD" --config-file "$DIR/daemon.json" --host "unix://$DIR/d.sock" --pidfile "$DIR/pid" --data-root "$DIR/root" \
		--exec-root "$DIR/x" --iptables=false --ip6tables=false --bridge=none --storage-driver=overlay2 >daemon.log 2>&1 &
	until curl -fs --unix-socket "$DIR/d.sock" http://docker/_ping >/dev/null 2>&1; do sleep 0.1; done
}
# The API tells of a failure by its status or in its last line.
pull() {
	code=$(timeout 60 curl -sS -X POST --unix-socket "$DIR/d.sock" -o "$1.out" -w '%{http_code}' \
		"http://docker/v1.41/images/create?fromImage=${2%:*}&tag=${2##*:}")
	cat "$1.out"
	[ "$code" = 200 ] && ! grep -q '"errorDetail"' "$1.out"
}
