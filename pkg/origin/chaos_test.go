package origin

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// fault is one way in which an origin misbehaves for one request.
type fault int

const (
	faultNone fault = iota
	faultCut
	faultEnd // ends early without a declared length
	faultStall
	faultIgnoreRange
	faultWrongStart
	faultTooLong
	faultStatus
	faultRedirect
	faultNoHeader
	faults
)

func (f fault) serve(w http.ResponseWriter, r *http.Request, b []byte, at int) {
	first, end := asked(r, len(b))
	at = min(at, end-first)
	switch f {
	case faultCut:
		_, _ = w.Write(headOf(w, r, b)[:at])
		cut(w)
	case faultEnd, faultTooLong:
		if r.Header.Get("Range") != "" {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, end-1, len(b)))
			w.WriteHeader(http.StatusPartialContent)
		}
		w.(http.Flusher).Flush()
		if f == faultEnd {
			_, _ = w.Write(b[first : first+at])
			return
		}
		_, _ = w.Write(b[first:end])
		_, _ = w.Write([]byte("too much"))
	case faultStall:
		_, _ = w.Write(headOf(w, r, b)[:at])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	case faultIgnoreRange:
		w.Header().Set("Content-Length", fmt.Sprint(len(b)))
		_, _ = w.Write(b)
	case faultWrongStart:
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first+1, end, len(b)+1))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(b[first:end])
	case faultStatus:
		w.WriteHeader([]int{400, 403, 404, 429, 500, 502, 503}[at%7])
	case faultRedirect:
		http.Redirect(w, r, fmt.Sprintf("http://cdn.example.net/%d?X-Amz-Expires=%d", at, at%9), http.StatusTemporaryRedirect)
	case faultNoHeader:
		panic(http.ErrAbortHandler)
	default:
		serveBytes(w, r, b)
	}
}

// However an origin misbehaves, a read ends in bounded time, and what it
// delivers is the content from the offset asked, up to where it gave up; without
// an error it is all of it.
func TestReadProperty(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		size := rapid.IntRange(0, 200_000).Draw(rt, "size")
		off := rapid.IntRange(0, size).Draw(rt, "off")
		n := rapid.IntRange(-1, size+10).Draw(rt, "n")
		script := rapid.SliceOfN(rapid.IntRange(0, int(faults)-1), 0, 12).Draw(rt, "faults")
		at := rapid.SliceOfN(rapid.IntRange(0, 200_000), 13, 13).Draw(rt, "at")
		chunk := rapid.IntRange(1, 100_000).Draw(rt, "chunk")
		byTag := rapid.Bool().Draw(rt, "by tag")
		synctest.Test(t, func(t *testing.T) {
			b := content(size)
			step := 0
			handler := func(w http.ResponseWriter, r *http.Request) {
				f, k := faultNone, at[12]
				if step < len(script) {
					f, k = fault(script[step]), at[step]
				}
				step++
				f.serve(w, r, b, k)
			}
			net := newMemNet()
			net.serve(t, testRegistry+":80", http.HandlerFunc(handler))
			net.serve(t, "cdn.example.net:80", http.HandlerFunc(handler))
			c := testClient(t, net, nil)
			ref := blobRef(b)
			if byTag {
				ref = tagRef("v1")
			}
			want := b[off:]
			if n >= 0 && n < len(want) {
				want = want[:n]
			}
			start := time.Now()
			got, err := readIn(t, c, ref, int64(size), int64(off), int64(n), chunk)
			if !bytes.HasPrefix(want, got) {
				rt.Fatalf("%d bytes that are not the content's from %d on (%v)", len(got), off, err)
			}
			if err == nil && len(got) != len(want) {
				rt.Fatalf("%d of %d bytes and no error", len(got), len(want))
			}
			if took := time.Since(start); took > time.Hour {
				rt.Fatalf("took %s", took)
			}
			known := false
			for _, e := range []error{ErrSize, ErrProtocol, ErrRedirect, ErrStalled, ErrChanged, io.ErrUnexpectedEOF} {
				known = known || errors.Is(err, e)
			}
			var se *StatusError
			if err != nil && (errors.Is(err, io.EOF) || !known && !errors.As(err, &se)) {
				rt.Fatalf("an error that callers cannot tell: %v", err)
			}
		})
	})
}

func readIn(t *testing.T, c *Client, ref Ref, size, off, n int64, chunk int) (got []byte, err error) {
	r, err := c.Read(t.Context(), ref, nil, size, off, n)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	buf := make([]byte, chunk)
	for {
		n, err := r.Read(buf)
		got = append(got, buf[:n]...)
		if err == io.EOF {
			return got, nil
		}
		if err != nil {
			return got, err
		}
	}
}
