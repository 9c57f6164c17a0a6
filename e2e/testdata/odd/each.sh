# Pulls each image of the file $IMAGES (name and image a line) by the function pull of
# the file $1, and prints name, result and seconds. What a pull wrote is in $DIR/NAME.log.
set -u
cd "$DIR"
. "$1"
begin
while read -r name image; do
	start=$(date +%s.%N)
	if pull "$name" "$image" >"$name.log" 2>&1 </dev/null; then result=ok; else result=failed; fi
	echo "$name $result $(date +%s.%N) $start" | awk '{printf "%s %s %.2f\n", $1, $2, $3 - $4}'
done <"$IMAGES"
