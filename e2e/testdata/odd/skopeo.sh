begin() { :; }
pull() { timeout 60 "$SKOPEO" --insecure-policy copy "docker://$2" "dir:$DIR/$1.image"; }
