package proxy

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
)

// span is the bytes [off, off+n) of a blob.
type span struct{ off, n int64 }

// errUnsatisfiable: a valid Range that no byte of the blob is in (416).
var errUnsatisfiable = errors.New("range lies outside the blob")

// errOddRange: a Range of bytes that breaks the grammar. A server may ignore it, or refuse.
var errOddRange = errors.New("range is not understood")

// maxSpans bounds the parts of one response. RFC 9110 section 14.2 lets a server
// ignore a Range that asks for very many.
const maxSpans = 1024

// parseRange reads a Range header (RFC 9110 section 14.1.2) for a blob of size
// bytes. No spans and no error: the whole blob is to be sent, because there is
// no Range, one of another unit, or one that asks for more than the blob holds. The error
// is errUnsatisfiable or errOddRange.
func parseRange(header string, size int64) ([]span, error) {
	unit, set, ok := strings.Cut(header, "=")
	if !ok || !strings.EqualFold(strings.TrimSpace(unit), "bytes") || size == 0 {
		return nil, nil
	}
	var spans []span
	var total int64
	valid := false
	for spec := range strings.SplitSeq(set, ",") {
		spec = strings.Trim(spec, " \t")
		if spec == "" {
			continue // an empty list element (RFC 9110 section 5.6.1)
		}
		s, err := parseSpan(spec, size)
		switch {
		case errors.Is(err, errUnsatisfiable):
			valid = true
			continue
		case err != nil:
			return nil, errOddRange
		}
		valid = true
		spans = append(spans, s)
		total += s.n
		if len(spans) > maxSpans || total > size {
			return nil, nil
		}
	}
	if len(spans) == 0 && valid {
		return nil, errUnsatisfiable
	}
	return spans, nil
}

// parseSpan reads one range-spec: "5-9", "5-" or "-5".
func parseSpan(spec string, size int64) (span, error) {
	first, last, ok := strings.Cut(spec, "-")
	if !ok {
		return span{}, fmt.Errorf("range %q has no '-'", spec)
	}
	if first == "" {
		n, err := parsePosition(last)
		if err != nil {
			return span{}, err
		}
		if n == 0 {
			return span{}, errUnsatisfiable
		}
		n = min(n, size)
		return span{size - n, n}, nil
	}
	off, err := parsePosition(first)
	if err != nil {
		return span{}, err
	}
	end := size - 1
	if last != "" {
		if end, err = parsePosition(last); err != nil {
			return span{}, err
		}
		if end < off {
			return span{}, fmt.Errorf("range %q ends before it starts", spec)
		}
	}
	if off >= size {
		return span{}, errUnsatisfiable
	}
	return span{off, min(end, size-1) - off + 1}, nil
}

// parsePosition reads digits; a number too large for an int64 is past every blob.
func parsePosition(s string) (int64, error) {
	if s == "" {
		return 0, errors.New("range has no number")
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, fmt.Errorf("range holds %q", s[i])
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return math.MaxInt64, nil
	}
	return n, nil
}

// formatRange is the Range header of spans, "" of none.
func formatRange(spans []span) string {
	if len(spans) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("bytes=")
	for i, s := range spans {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%d-%d", s.off, s.off+s.n-1)
	}
	return b.String()
}

// rangeOf takes the Range off a request and returns it, "" where an If-Range says that it
// does not count.
func rangeOf(r *http.Request, etag string) string {
	header := r.Header.Get("Range")
	if v := r.Header.Get("If-Range"); v != "" && v != etag {
		header = ""
	}
	r.Header.Del("If-Range")
	r.Header.Del("Range")
	return header
}

// dropOddRange takes a Range that breaks the grammar off a request (RFC 9110 section 14.2).
func dropOddRange(r *http.Request) {
	if _, err := parseRange(r.Header.Get("Range"), 1); errors.Is(err, errOddRange) {
		r.Header.Del("Range")
	}
}

// matches tells whether an If-None-Match header holds the entity tag (RFC 9110
// section 13.1.2, weak comparison).
func matches(header, etag string) bool {
	for v := range strings.SplitSeq(header, ",") {
		v = strings.TrimSpace(v)
		if v == "*" || strings.TrimPrefix(v, "W/") == etag {
			return true
		}
	}
	return false
}
