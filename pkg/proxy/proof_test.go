package proxy_test

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/proxy"
	"github.com/damselfly-p2p/damselfly/pkg/proxy/proxytest"
)

// liar is a server that does not have a blob and would like it to be taken for one that has.
type liar struct {
	name string
	// answer is what it sends for the bytes [off, off+n) of a blob of which it knows part.
	answer func(w http.ResponseWriter, r *http.Request, known []byte, off, n int64)
}

func part(w http.ResponseWriter, data []byte, off, n int64) {
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, off+n-1, len(data)))
	w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
	w.WriteHeader(http.StatusPartialContent)
	_, _ = w.Write(data[off : off+n])
}

func liars() []liar {
	return []liar{
		{"it has other bytes", func(w http.ResponseWriter, _ *http.Request, known []byte, off, n int64) { part(w, known, off, n) }},
		{"it ignores ranges", func(w http.ResponseWriter, _ *http.Request, known []byte, _, _ int64) {
			w.Header().Set("Content-Length", strconv.Itoa(len(known)))
			_, _ = w.Write(known)
		}},
		{"it sends the whole without its length", func(w http.ResponseWriter, _ *http.Request, known []byte, _, _ int64) { _, _ = w.Write(known) }},
		{"it moves the place to what it knows", func(w http.ResponseWriter, _ *http.Request, known []byte, _, n int64) { part(w, known, 0, n) }},
		{"it shows less", func(w http.ResponseWriter, _ *http.Request, known []byte, off, _ int64) { part(w, known, off, 1) }},
		{"it says that all sizes are right", func(w http.ResponseWriter, _ *http.Request, known []byte, off, n int64) {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/*", off, off+n-1))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(known[off : off+n])
		}},
		{"it says another size", func(w http.ResponseWriter, _ *http.Request, known []byte, off, n int64) {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, off+n-1, len(known)+1))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(known[off : off+n])
		}},
		{"it has nothing new", func(w http.ResponseWriter, _ *http.Request, _ []byte, _, _ int64) {
			w.WriteHeader(http.StatusNotModified)
		}},
		{"it sends nothing", func(w http.ResponseWriter, _ *http.Request, _ []byte, _, _ int64) { w.WriteHeader(http.StatusOK) }},
		{"it sends many parts", func(w http.ResponseWriter, _ *http.Request, known []byte, off, n int64) {
			w.Header().Set("Content-Type", "multipart/byteranges; boundary=x")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = fmt.Fprintf(w, "--x\r\nContent-Range: bytes %d-%d/%d\r\n\r\n%s\r\n--x--", off, off+n-1, len(known), known[off:off+n])
		}},
	}
}

// TestProof: whatever a client asks for and however its server answers, who does not have
// a blob gets nothing of it, whether the cluster holds it whole, in part, or is about to
// have it; nor the next time.
func TestProof(t *testing.T) {
	secret := noise(3 << 20)
	d := blob.FromBytes(secret)
	for _, l := range liars() {
		for held, have := range map[string]int64{"whole": int64(len(secret)), "in part": 2 << 20} {
			for known, bytesKnown := range map[string]int{"nothing": 0, "its first byte": 1, "its head": 512 << 10} {
				t.Run(l.name+", knows "+known+", held "+held, func(t *testing.T) {
					w := newWorld(t, nil)
					b := w.tasks.Add(secret, have)
					time.AfterFunc(20*time.Millisecond, func() { b.Arrive(int64(len(secret))) })
					fake := append(bytes.Clone(secret[:bytesKnown]), bytes.Repeat([]byte{0x55}, len(secret)-bytesKnown)...)
					w.origin.hook = func(rw http.ResponseWriter, r *http.Request) bool {
						var first, last int64
						if n, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last); n != 2 || last >= int64(len(fake)) {
							first, last = 0, int64(len(fake))-1
						}
						l.answer(rw, r, fake, first, last-first+1)
						return true
					}
					for i, ask := range []string{"", "Range: bytes=0-0", "Range: bytes=0-", "Range: bytes=-1", "Range: bytes=5-6,9-9", "Range: bytes=1000000-1000000", "Range: x"} {
						size := fmt.Sprintf("&size=%d", len(secret))
						if i%2 == 1 {
							size = ""
						}
						g := w.getCut(blobURL(d, "https://files.example.com/f", size), ask)
						if leaks(g, bytesKnown) {
							t.Errorf("%q: got %d bytes, of which it knew %d", ask, len(g), bytesKnown)
						}
					}
				})
			}
		}
	}
}

// leaks tells whether a body has more of a secret than its server knew, which fills the rest
// with what is hardly ever in it.
func leaks(body []byte, known int) bool {
	const headers = 512 // of parts
	return len(body)-bytes.Count(body, []byte{0x55}) > known+headers
}

// getCut is the body of an answer, however it ends.
func (w *world) getCut(path, ask string) []byte {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, w.main.URL+path, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	if k, v, ok := strings.Cut(ask, ": "); ok {
		req.Header.Set(k, v)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 400 {
		return nil
	}
	var got bytes.Buffer
	_, _ = got.ReadFrom(resp.Body)
	return got.Bytes()
}

// Who has the blob is served, whatever it asks for, also while the blob is on its way here;
// no byte goes out ahead of the proof.
func TestProofOfWhoHasIt(t *testing.T) {
	data := noise(3 << 20)
	d := blob.FromBytes(data)
	for _, have := range []int64{int64(len(data)), 1 << 20} {
		w := newWorld(t, nil)
		b := w.tasks.Add(data, have)
		fileServer(w, map[string][]byte{"f": data}, true)
		path := blobURL(d, "https://files.example.com/f", "")
		if have < int64(len(data)) {
			time.AfterFunc(50*time.Millisecond, func() { b.Arrive(int64(len(data))) })
		}
		for ask, want := range map[string][]byte{
			"Range: bytes=0-0": data[:1], "Range: bytes=1500000-1500009": data[1500000:1500010], "Range: bytes=-3": data[len(data)-3:], "": data,
		} {
			if g := w.getCut(path, ask); !bytes.Equal(g, want) {
				t.Errorf("%q: %d bytes, want %d", ask, len(g), len(want))
			}
		}
	}
}

// Guesses cost time: after a few that failed a blob is claimed once in a while, by whomever
// and at whichever server; who has proven it before reads on.
func TestGuessesCostTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRegistry()
		data := noise(100_000)
		d := blob.FromBytes(data)
		fake := bytes.Repeat([]byte{1}, len(data))
		g.hook = func(rw http.ResponseWriter, r *http.Request) bool {
			serve := fake
			if r.Host == "good.example.com" {
				serve = data
			}
			http.ServeContent(rw, r, "", time.Time{}, bytes.NewReader(serve))
			return true
		}
		tasks := proxytest.NewTasks(t.TempDir(), upstream{g})
		tasks.Add(data, int64(len(data)))
		p, err := proxy.New(proxy.Config{}, tasks, upstream{g}, zap.NewNop(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		face := p.Registry("")
		get := func(path, authorization string) int {
			r := httptest.NewRequest(http.MethodGet, path, nil)
			r.RemoteAddr, r.Host = "127.0.0.1:1", "localhost"
			r.Header.Set("Authorization", authorization)
			rec := httptest.NewRecorder()
			face.ServeHTTP(rec, r)
			return rec.Code
		}
		u := func(host string, i int) string {
			return "/damselfly/v1/blob?digest=" + url.QueryEscape(d.String()) + "&url=" + url.QueryEscape(fmt.Sprintf("https://%s/%d", host, i)) + "&size=100000"
		}
		if s := get(u("good.example.com", 0), "Bearer good"); s != 200 {
			t.Fatal(s)
		}
		begun, tries := time.Now(), 0
		for time.Since(begun) < time.Hour {
			s := get(u(fmt.Sprintf("h%d.example.com", tries), tries), fmt.Sprintf("Bearer %d", tries))
			switch s {
			case 403:
				tries++
			case 429:
				time.Sleep(time.Second)
			default:
				t.Fatal(s)
			}
		}
		if tries > 80 {
			t.Errorf("%d guesses in an hour", tries)
		}
		if s := get(u("good.example.com", 0), "Bearer good"); s != 200 && s != 429 {
			t.Errorf("who has proven it: %d", s)
		}
		time.Sleep(2 * time.Minute)
		if s := get(u("good.example.com", 1), "Bearer better"); s != 200 {
			t.Errorf("afterwards: %d", s)
		}
	})
}

// A blob that becomes whole while its server is asked for its start goes out by stretches all
// the same: who knows the start gets that.
func TestProofWhileItBecomesWhole(t *testing.T) {
	secret := noise(3 << 20)
	const known = 300 << 10
	w := newWorld(t, nil)
	b := w.tasks.Add(secret, 1<<20)
	fake := append(bytes.Clone(secret[:known]), bytes.Repeat([]byte{0x55}, len(secret)-known)...)
	w.tasks.OnOpen(func(n int) {
		if n == 2 { // the first looked at the first stretch
			b.Arrive(int64(len(secret)))
		}
	})
	w.origin.hook = func(rw http.ResponseWriter, r *http.Request) bool {
		http.ServeContent(rw, r, "", time.Time{}, bytes.NewReader(fake))
		return true
	}
	got := w.getCut(blobURL(blob.FromBytes(secret), "https://files.example.com/f", fmt.Sprintf("&size=%d", len(secret))), "")
	if leaks(got, known) {
		t.Errorf("got %d bytes, its server knew %d", len(got), known)
	}
	if len(got) != 256<<10 {
		t.Errorf("got %d bytes, the server has shown that it knows 256 KiB", len(got))
	}
}

// Many downloads at a time are no many claims: a claim counts until it is proven.
func TestManyDownloadsAtATime(t *testing.T) {
	w := newWorld(t, nil)
	data := noise(1 << 20)
	w.tasks.Add(data, 600<<10)
	fileServer(w, map[string][]byte{"f": data}, true)
	var open []*http.Response
	for i := range 40 {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.main.URL+blobURL(blob.FromBytes(data), "https://files.example.com/f", ""), nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("download %d: %v, %v", i, resp, err)
		}
		open = append(open, resp)
	}
	for _, resp := range open {
		_ = resp.Body.Close()
	}
}
