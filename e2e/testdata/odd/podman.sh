begin() { :; }
pull() {
	timeout 60 "$PODMAN" --root "$DIR/root" --runroot /run/podman --tmpdir /run/libpod --storage-driver overlay --events-backend none \
		pull --quiet "$2"
}
