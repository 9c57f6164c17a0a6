package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
	"github.com/damselfly-p2p/damselfly/pkg/proxy"
	"github.com/damselfly-p2p/damselfly/pkg/proxy/proxytest"
)

// blobWorld has a blob at the origin of which have bytes are here.
func blobWorld(t *testing.T, data []byte, have int64, change func(*proxy.Config)) (*world, *proxytest.Blob, string) {
	t.Helper()
	w := newWorld(t, change)
	w.origin.keep("app/img", data)
	b := w.tasks.Add(data, have)
	return w, b, "/v2/app/img/blobs/" + blob.FromBytes(data).String()
}

func TestRanges(t *testing.T) {
	data := noise(1000)
	etag := `"` + blob.FromBytes(data).String() + `"`
	for _, c := range []struct {
		name    string
		headers []string
		status  int
		want    []byte // nil: not looked at
		crange  string
	}{
		{"none", nil, 200, data, ""},
		{"first chunk of containerd 2", []string{"Range: bytes=0-"}, 206, data, "bytes 0-999/1000"},
		{"open-ended", []string{"Range: bytes=400-"}, 206, data[400:], "bytes 400-999/1000"},
		{"closed", []string{"Range: bytes=10-19"}, 206, data[10:20], "bytes 10-19/1000"},
		{"one byte", []string{"Range: bytes=0-0"}, 206, data[:1], "bytes 0-0/1000"},
		{"last byte", []string{"Range: bytes=999-"}, 206, data[999:], "bytes 999-999/1000"},
		{"suffix", []string{"Range: bytes=-100"}, 206, data[900:], "bytes 900-999/1000"},
		{"suffix longer than the blob", []string{"Range: bytes=-5000"}, 206, data, "bytes 0-999/1000"},
		{"end past the end", []string{"Range: bytes=990-5000"}, 206, data[990:], "bytes 990-999/1000"},
		{"start past the end", []string{"Range: bytes=1000-"}, 416, nil, "bytes */1000"},
		{"two of which one is outside", []string{"Range: bytes=2000-3000,5-6"}, 206, data[5:7], "bytes 5-6/1000"},
		{"broken", []string{"Range: bytes=9-1"}, 416, nil, ""},
		{"other unit", []string{"Range: pieces=0-1"}, 200, data, ""},
		{"more than the blob", []string{"Range: bytes=0-,0-"}, 200, data, ""},
		{"If-Range that holds", []string{"Range: bytes=1-2", "If-Range: " + etag}, 206, data[1:3], "bytes 1-2/1000"},
		{"If-Range that does not", []string{"Range: bytes=1-2", `If-Range: "other"`}, 200, data, ""},
		{"If-None-Match that holds", []string{"If-None-Match: " + etag}, 304, []byte{}, ""},
		{"If-None-Match of several", []string{`If-None-Match: "a", W/` + etag}, 304, []byte{}, ""},
		{"If-None-Match that does not", []string{`If-None-Match: "other"`}, 200, data, ""},
		{"If-Match that does not", []string{`If-Match: "other"`}, 412, nil, ""},
		{"Accept-Encoding", []string{"Accept-Encoding: zstd;q=1.0, gzip;q=0.8"}, 200, data, ""},
	} {
		for _, have := range []int64{1000, 999} {
			t.Run(fmt.Sprintf("%s, %d here", c.name, have), func(t *testing.T) {
				w, b, path := blobWorld(t, data, have, nil)
				b.Arrive(have)
				go b.Arrive(1000)
				g := w.get(path, c.headers...)
				if g.err != nil || g.status != c.status || c.want != nil && g.body != string(c.want) || g.header.Get("Content-Range") != c.crange {
					t.Fatalf("%d, %d bytes, %v, %v", g.status, len(g.body), g.header, g.err)
				}
				if g.header.Get("Content-Encoding") != "" || g.status < 300 && g.header.Get("Content-Type") != "application/octet-stream" {
					t.Errorf("%v", g.header)
				}
				if g.status < 300 && (g.header.Get("Etag") != etag || g.header.Get("Accept-Ranges") != "bytes") {
					t.Errorf("%v", g.header)
				}
			})
		}
	}
}

func TestMultiRangeOpensWhatItSends(t *testing.T) {
	data := noise(100_000)
	w, b, path := blobWorld(t, data, 50, nil)
	resp := start(t, t.Context(), w.main.URL+path, "Range: bytes=0-9,5000-5099,-10")
	b.Arrive(100_000)
	typ, params, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil || resp.StatusCode != 206 || typ != "multipart/byteranges" {
		t.Fatalf("%d %v", resp.StatusCode, resp.Header)
	}
	parts := multipart.NewReader(resp.Body, params["boundary"])
	for _, want := range []struct {
		crange string
		body   []byte
	}{
		{"bytes 0-9/100000", data[:10]}, {"bytes 5000-5099/100000", data[5000:5100]}, {"bytes 99990-99999/100000", data[99990:]},
	} {
		p, err := parts.NextPart()
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(p)
		if err != nil || p.Header.Get("Content-Range") != want.crange || !bytes.Equal(body, want.body) {
			t.Errorf("%v, %d bytes, %v", p.Header, len(body), err)
		}
	}
	var opened []string
	for _, r := range w.tasks.Requests() {
		opened = append(opened, fmt.Sprint(r.Offset, "+", r.Length))
	}
	if got := strings.Join(opened, " "); got != "0+10 5000+100 99990+-1" {
		t.Errorf("opened %s", got)
	}
}

func TestRangeOfUnknownSize(t *testing.T) {
	data := noise(1000)
	w, _, path := blobWorld(t, data, 1000, nil)
	w.origin.hook = func(rw http.ResponseWriter, r *http.Request) bool {
		return r.Method == http.MethodHead // 200 without a length
	}
	if g := w.get(path, "Range: bytes=-10"); g.status != 206 || g.body != string(data[990:]) {
		t.Errorf("%d, %d bytes", g.status, len(g.body))
	}
}

func TestEmptyBlob(t *testing.T) {
	w := newWorld(t, nil)
	w.origin.keep("app/img", nil)
	path := "/v2/app/img/blobs/" + blob.FromBytes(nil).String()
	for _, headers := range [][]string{nil, {"Range: bytes=0-"}, {"Range: bytes=5-"}, {"Range: bytes=-5"}} {
		if g := w.get(path, headers...); g.status != 200 || g.body != "" || g.header.Get("Content-Length") != "0" {
			t.Errorf("%v: %d %v", headers, g.status, g.header)
		}
	}
	if g := w.head(path); g.status != 200 || g.header.Get("Content-Length") != "0" {
		t.Errorf("HEAD: %d %v", g.status, g.header)
	}
	if g := w.get("/v2/other/blobs/" + blob.FromBytes(nil).String()); g.status != 404 {
		t.Errorf("elsewhere: %d", g.status)
	}
}

func TestHeadOfBlobIsTheOriginsAnswer(t *testing.T) {
	data := noise(1000)
	w, _, path := blobWorld(t, data, 0, nil)
	for range 2 {
		g := w.head(path)
		if g.status != 200 || g.header.Get("Content-Length") != "1000" || g.header.Get("Docker-Content-Digest") == "" {
			t.Errorf("%d %v", g.status, g.header)
		}
	}
	if w.origin.count("HEAD") != 2 || len(w.tasks.Requests()) != 0 {
		t.Errorf("%q", w.origin.seen())
	}
}

// start sends a GET and returns the response when its headers are here.
func start(t *testing.T, ctx context.Context, url string, headers ...string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		k, v, _ := strings.Cut(h, ": ")
		req.Header.Set(k, v)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func TestClientGetsBytesAsTheyCome(t *testing.T) {
	data := noise(1_000_000)
	w, b, path := blobWorld(t, data, 0, nil)
	go b.Arrive(300_000)
	resp := start(t, t.Context(), w.main.URL+path)
	if resp.StatusCode != 200 || resp.ContentLength != 1_000_000 {
		t.Fatalf("%d, %d bytes", resp.StatusCode, resp.ContentLength)
	}
	have := make([]byte, 250_000)
	if _, err := io.ReadFull(resp.Body, have); err != nil || !bytes.Equal(have, data[:250_000]) {
		t.Fatal("the prefix is not right", err)
	}
	b.Arrive(1_000_000)
	rest, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Equal(rest, data[250_000:]) {
		t.Fatalf("%d bytes, %v", len(rest), err)
	}
}

// Until the first byte is out, what fails here is the origin's to answer: the client gets
// what it would have got without us, and the reason is counted.
func TestErrorBeforeTheFirstByteIsPassedToTheOrigin(t *testing.T) {
	for why, errs := range map[string][]error{
		"refused":  {&origin.StatusError{Code: 404}, &origin.StatusError{Code: 429}, &origin.StatusError{Code: 503}},
		"size":     {&origin.SizeError{Size: -1, Expected: 1000}},
		"digest":   {blob.ErrMismatch},
		"protocol": {origin.ErrNoRange, origin.ErrProtocol},
		"failed":   {context.DeadlineExceeded, errors.New("disk on fire")},
	} {
		for _, cause := range errs {
			data := noise(1000)
			w, b, path := blobWorld(t, data, 0, nil)
			go b.Fail(fmt.Errorf("task: %w", cause))
			if g := w.get(path, "Range: bytes=10-19"); g.status != 206 || g.body != string(data[10:20]) || g.err != nil {
				t.Errorf("%v: %d, %d bytes, %v", cause, g.status, len(g.body), g.err)
			}
			if n := w.metric("damselfly_passthrough_total/" + why); n != 1 {
				t.Errorf("%v: counted %v as %s", cause, n, why)
			}
			w.origin.hook = func(rw http.ResponseWriter, _ *http.Request) bool {
				rw.Header().Set("Www-Authenticate", challenge)
				rw.WriteHeader(http.StatusUnauthorized)
				_, _ = io.WriteString(rw, refusalBody)
				return true
			}
			if g := w.get(path); g.status != 401 || g.body != refusalBody || g.header.Get("Www-Authenticate") != challenge {
				t.Errorf("%v: refused: %d %q %v", cause, g.status, g.body, g.header)
			}
		}
	}
}

func TestErrorAfterTheFirstByteCutsTheBody(t *testing.T) {
	data := noise(1_000_000)
	for _, headers := range [][]string{nil, {"Range: bytes=0-99,500000-500099"}} {
		w, b, path := blobWorld(t, data, 200_000, nil)
		resp := start(t, t.Context(), w.main.URL+path, headers...)
		b.Fail(errors.New("no source is left"))
		body, err := io.ReadAll(resp.Body)
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%v: %d bytes and %v: the client takes it for whole", headers, len(body), err)
		}
		if headers == nil && !bytes.HasPrefix(data, body) {
			t.Error("wrong bytes")
		}
		w.main.Close() // waits for the handler
		if w.logs.FilterMessage("response cut short").Len() != 1 {
			t.Error("nothing in the log")
		}
		if n := w.metric("damselfly_pulls_total/short"); n != 1 {
			t.Errorf("counted %v short bodies", n)
		}
	}
}

func TestClientThatGoesDoesNotTouchOthers(t *testing.T) {
	data := noise(16 << 20) // more than the sockets' buffers take
	w, b, path := blobWorld(t, data, 100_000, nil)
	ctx, leave := context.WithCancel(t.Context())
	gone := start(t, ctx, w.main.URL+path, "Range: bytes=0-")
	stays := start(t, t.Context(), w.main.URL+path, "Range: bytes=0-")
	if _, err := io.ReadFull(gone.Body, make([]byte, 10_000)); err != nil {
		t.Fatal(err)
	}
	leave()
	b.Arrive(int64(len(data)))
	if body, err := io.ReadAll(stays.Body); err != nil || !bytes.Equal(body, data) {
		t.Fatalf("%d bytes, %v", len(body), err)
	}
	w.main.Close()
	if n := w.logs.FilterLevelExact(1).Len() + w.logs.FilterLevelExact(2).Len(); n != 0 { // warn, error
		t.Errorf("a client's leaving is logged as a fault: %v", w.logs.All())
	}
	if gone, served := w.metric("damselfly_pulls_total/aborted"), w.metric("damselfly_pulls_total/miss"); gone != 1 || served != 1 {
		t.Errorf("counted %v aborted, %v served", gone, served)
	}
}

// A containerd 2 client asks for open-ended ranges and reads one buffer of each.
func TestChunkedFetch(t *testing.T) {
	const chunk = 1 << 20
	data := noise(5*chunk + 12345)
	w, b, path := blobWorld(t, data, 0, nil)
	go b.Arrive(int64(len(data)))
	got := make([]byte, len(data))
	var all sync.WaitGroup
	for off := 0; off < len(data); off += chunk {
		all.Go(func() {
			resp := start(t, t.Context(), w.main.URL+path, fmt.Sprintf("Range: bytes=%d-", off))
			if want := fmt.Sprintf("bytes %d-%d/%d", off, len(data)-1, len(data)); resp.StatusCode != 206 || resp.Header.Get("Content-Range") != want {
				t.Errorf("%d %v", resp.StatusCode, resp.Header)
			}
			if _, err := io.ReadFull(resp.Body, got[off:min(off+chunk, len(data))]); err != nil {
				t.Error(err)
			}
			resp.Body.Close()
		})
	}
	all.Wait()
	if !bytes.Equal(got, data) {
		t.Error("wrong bytes")
	}
}

func TestClientThatReadsNothingIsDropped(t *testing.T) {
	data := noise(16 << 20)
	for _, have := range []int64{int64(len(data)), int64(len(data)) - 1} {
		w, _, path := blobWorld(t, data, have, func(c *proxy.Config) { c.WriteTimeout = 50 * time.Millisecond })
		conn, err := net.Dial("tcp", w.main.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", path)
		w.main.Close() // returns only when the handler has given up
		n, _ := io.Copy(io.Discard, conn)
		if n >= int64(len(data)) {
			t.Error("all of it was sent")
		}
	}
}

func TestKeepAliveOutlivesTheWriteTimeout(t *testing.T) {
	data := noise(1000)
	w, b, path := blobWorld(t, data, 0, func(c *proxy.Config) { c.WriteTimeout = 20 * time.Millisecond })
	conn, err := net.Dial("tcp", w.main.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	timer := time.AfterFunc(80*time.Millisecond, func() { b.Arrive(1000) }) // longer than the timeout
	defer timer.Stop()
	for range 2 {
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", path)
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if body, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(body, data) {
			t.Fatalf("%d bytes, %v", len(body), err)
		}
	}
}
