package proxy_test

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// fileServer makes the origin serve files at https://files.example.com/<name>.
func fileServer(w *world, files map[string][]byte, ranges bool) {
	w.origin.hook = func(rw http.ResponseWriter, r *http.Request) bool {
		data, ok := files[strings.TrimPrefix(r.URL.Path, "/")]
		switch {
		case r.Host != "files.example.com":
			return false
		case r.URL.Path == "/private" && r.Header.Get("Authorization") != "Bearer bob" && r.Header.Get("X-Token") != "bob":
			rw.Header().Set("Www-Authenticate", challenge)
			rw.WriteHeader(401)
		case !ok:
			rw.WriteHeader(404)
		default:
			if !ranges {
				r.Header.Del("Range")
			}
			http.ServeContent(rw, r, "", time.Time{}, strings.NewReader(string(data)))
		}
		return true
	}
}

func blobURL(d blob.Digest, u string, more string) string {
	return "/damselfly/v1/blob?digest=" + url.QueryEscape(d.String()) + "&url=" + url.QueryEscape(u) + more
}

func TestURLWithKnownDigest(t *testing.T) {
	data := noise(700_000)
	d := blob.FromBytes(data)
	for _, ranges := range []bool{true, false} {
		for _, size := range []string{"", fmt.Sprintf("&size=%d", len(data))} {
			w := newWorld(t, nil)
			fileServer(w, map[string][]byte{"f": data}, ranges)
			path := blobURL(d, "https://files.example.com/f?sig=1", size)
			for range 2 {
				g := w.get(path)
				if g.status != 200 || g.body != string(data) || g.header.Get("Etag") != `"`+d.String()+`"` || g.header.Get("Content-Type") != "application/octet-stream" {
					t.Fatalf("%d, %d bytes, %v", g.status, len(g.body), g.header)
				}
			}
			if g := w.get(path, "Range: bytes=600000-600009"); g.status != 206 || g.body != string(data[600000:600010]) {
				t.Errorf("range: %d", g.status)
			}
			want := 1 // what a server without ranges sends is what the client gets
			if ranges {
				want = 9 // the task's, and twice four small ones as proof
			}
			if size == "" && ranges {
				want++ // for the size
			}
			if n := w.origin.count("GET"); n != want {
				t.Errorf("%d GETs, want %d: %q", n, want, w.origin.seen())
			}
		}
	}
}

func TestURLHeadersReachTheServer(t *testing.T) {
	data := noise(1000)
	w := newWorld(t, nil)
	fileServer(w, map[string][]byte{"private": data}, true)
	path := blobURL(blob.FromBytes(data), "https://files.example.com/private", "")
	if g := w.get(path); g.status != 401 || g.header.Get("Www-Authenticate") != challenge {
		t.Errorf("anonymous: %d", g.status)
	}
	if g := w.get(path, "Damselfly-Origin-X-Token: bob", "Damselfly-Origin-Host: evil", "Damselfly-Origin-Range: bytes=0-1",
		"Damselfly-Origin-Damselfly-Via: x", "X-Other: 1"); g.status != 200 || g.body != string(data) {
		t.Errorf("by header: %d", g.status)
	}
	if g := w.get(path, bob); g.status != 200 || g.body != string(data) {
		t.Errorf("by Authorization: %d", g.status)
	}
	// Others are refused although the blob is here.
	for _, who := range []string{eve, "Damselfly-Origin-X-Token: eve", "X-Token: bob", "Accept: */*"} {
		if g := w.get(path, who); g.status != 401 {
			t.Errorf("%s: %d", who, g.status)
		}
	}
	for _, h := range w.origin.headers {
		if h.Get("X-Other") != "" || h.Get("Host") != "" || strings.Contains(strings.Join(h["Damselfly-Via"], ""), "x,") {
			t.Errorf("%v", h)
		}
	}
}

func TestServerThatDoesNotKeepTheBlobOpensNothing(t *testing.T) {
	w, im := privateWorld(t)
	fake := bytes.Clone(im.layer) // right in length and at its ends
	for i := 100; i < len(fake)-100; i++ {
		fake[i] ^= 0xff
	}
	for _, ranges := range []bool{true, false} {
		for _, name := range []string{"claim", "short", "none"} {
			for _, more := range []string{"", fmt.Sprintf("&size=%d", len(im.layer))} {
				w, _ := privateWorld(t)
				fileServer(w, map[string][]byte{"claim": fake, "short": im.layer[:100]}, ranges)
				g := w.get(blobURL(blob.FromBytes(im.layer), "https://files.example.com/"+name, more), eve)
				if g.status < 400 || strings.Contains(g.body, string(im.layer[:50])) {
					t.Errorf("%s, ranges %v: %d", name, ranges, g.status)
				}
			}
		}
	}
	fileServer(w, map[string][]byte{"copy": im.layer, "claim": fake}, true)
	if g := w.get(blobURL(blob.FromBytes(im.layer), "https://files.example.com/copy", ""), eve); g.status != 200 || g.body != string(im.layer) {
		t.Errorf("a server that has the bytes: %d %s", g.status, g.code())
	}
	if g := w.get(blobURL(blob.FromBytes(im.layer), "https://files.example.com/claim", ""), eve); g.status != 403 || g.code() != "DENIED" {
		t.Errorf("afterwards another server: %d %s", g.status, g.code())
	}
}

func TestURLRequestsThatAreRefused(t *testing.T) {
	w := newWorld(t, nil)
	d := blob.FromBytes([]byte("x"))
	const u = "https://files.example.com/f"
	for _, c := range []struct {
		path   string
		status int
		code   string
	}{
		{blobURL("sha256:1", u, ""), 400, "DIGEST_INVALID"},
		{blobURL("", u, ""), 400, "DIGEST_INVALID"},
		{blobURL(d, "", ""), 400, "NAME_INVALID"},
		{blobURL(d, "file:///etc/passwd", ""), 400, "NAME_INVALID"},
		{blobURL(d, "https://user:pw@files.example.com/", ""), 400, "NAME_INVALID"},
		{blobURL(d, "/f", ""), 400, "NAME_INVALID"},
		{blobURL(d, u, "&size=-1"), 400, "SIZE_INVALID"},
		{blobURL(d, u, "&size=99999999999999999"), 400, "SIZE_INVALID"},
		{blobURL(d, u, "&%zz"), 400, "NAME_INVALID"},
	} {
		if g := w.get(c.path); g.status != c.status || g.code() != c.code {
			t.Errorf("%s: %d %s, want %d %s", c.path, g.status, g.code(), c.status, c.code)
		}
	}
	if g := do(t, "POST", w.main.URL+blobURL(d, u, "")); g.status != 405 {
		t.Errorf("POST: %d", g.status)
	}
	if len(w.tasks.Requests()) != 0 || w.origin.count("") != 0 {
		t.Error("something was asked for")
	}
}

func TestURLIsForThisMachine(t *testing.T) {
	w := newWorld(t, nil)
	data := noise(10)
	fileServer(w, map[string][]byte{"f": data}, true)
	path := blobURL(blob.FromBytes(data), "https://files.example.com/f", "")
	hub := w.serve(w.proxy.Registry("docker.io"))
	if g := do(t, "GET", hub.URL+path); g.status != 404 {
		t.Errorf("on another face: %d", g.status)
	}
	for _, c := range []struct {
		from, host, header string
		status             int
	}{
		{"127.0.0.1:1", "127.0.0.1:65001", "", 200},
		{"[::1]:1", "localhost:65001", "", 200},
		{"[::ffff:127.0.0.1]:1", "[::1]:65001", "", 200},
		{"@", "anything", "", 200},
		{"10.0.0.7:1", "127.0.0.1:65001", "", 403},
		{"127.0.0.1:1", "rebound.example.com", "", 403},
		{"127.0.0.1:1", "127.0.0.1", "Origin: https://evil.example.com", 403},
		{"127.0.0.1:1", "127.0.0.1", "Sec-Fetch-Site: cross-site", 403},
	} {
		r := httptest.NewRequest("GET", path, nil)
		r.RemoteAddr, r.Host = c.from, c.host
		if k, v, ok := strings.Cut(c.header, ": "); ok {
			r.Header.Set(k, v)
		}
		rec := httptest.NewRecorder()
		w.proxy.Registry("").ServeHTTP(rec, r)
		if rec.Code != c.status {
			t.Errorf("%+v: %d", c, rec.Code)
		}
	}
}
