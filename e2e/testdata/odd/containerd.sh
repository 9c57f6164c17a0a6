begin() {
	"$CONTAINERD" --config "$DIR/containerd.toml" --address "$DIR/c.sock" --root "$DIR/root" --state "$DIR/state" >daemon.log 2>&1 &
	until "$CTR" --address "$DIR/c.sock" version >/dev/null 2>&1; do sleep 0.1; done
}
pull() { timeout 60 "$CTR" --address "$DIR/c.sock" images pull --hosts-dir "$DIR/certs.d" "$2"; }
