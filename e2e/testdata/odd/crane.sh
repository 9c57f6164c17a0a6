begin() { :; }
pull() { timeout 60 "$CRANE" pull --format oci --platform "linux/$ARCH" "$2" "$DIR/$1.image"; }
