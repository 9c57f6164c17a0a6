package origin

import (
	"fmt"
	"math"
	"strings"
)

// contentRange is a Content-Range of bytes (RFC 9110 section 14.4). Last is
// inclusive. Of an unsatisfied range, "bytes */N", First and Last are -1; Size is
// -1 where the origin does not say.
type contentRange struct {
	First, Last, Size int64
}

// parseContentRange reads the value of a Content-Range field. What it returns
// holds 0 <= First <= Last < Size, as far as each is known.
func parseContentRange(s string) (contentRange, error) {
	bad := func() (contentRange, error) {
		return contentRange{}, fmt.Errorf("%w: Content-Range %q", ErrProtocol, clip(s))
	}
	unit, spec, ok := strings.Cut(strings.TrimSpace(s), " ")
	if !ok || !strings.EqualFold(unit, "bytes") {
		return bad()
	}
	span, total, ok := strings.Cut(strings.TrimSpace(spec), "/")
	if !ok {
		return bad()
	}
	r := contentRange{First: -1, Last: -1, Size: -1}
	if total != "*" {
		if r.Size, ok = parseDigits(total); !ok {
			return bad()
		}
	}
	if span == "*" {
		if r.Size < 0 {
			return bad()
		}
		return r, nil
	}
	first, last, ok := strings.Cut(span, "-")
	if !ok {
		return bad()
	}
	var ok1, ok2 bool
	r.First, ok1 = parseDigits(first)
	r.Last, ok2 = parseDigits(last)
	if !ok1 || !ok2 || r.Last < r.First || r.Size >= 0 && r.Last >= r.Size {
		return bad()
	}
	return r, nil
}

// parseDigits reads a number of decimal digits alone: no sign, no space, no
// overflow, and below the largest int64, so that adding one is safe.
func parseDigits(s string) (int64, bool) {
	if s == "" || len(s) > 19 {
		return 0, false
	}
	var n int64
	for i := range len(s) {
		c := s[i]
		if c < '0' || c > '9' || n > (math.MaxInt64-9)/10 {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, n < math.MaxInt64
}
