package origin

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/damselfly-p2p/damselfly/e2e/sample"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const body = "0123456789"

// blobs serves body as the blob with its digest.
func blobs() (http.Handler, string) {
	digest := sample.Digest([]byte(body))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(body))
	}), "/v2/app/img/blobs/" + digest
}

// world is a front of a handler with a client that reaches it.
type world struct {
	*Front
	client *http.Client
}

// start starts a front that speaks as wire says, under an authority of its own.
func start(t *testing.T, handler http.Handler, wire Wire) world {
	t.Helper()
	var err error
	if wire.Authority, err = NewAuthority(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	f, err := NewHandlerFront(handler, NewCounter(), wire)
	if err != nil {
		t.Fatal(err)
	}
	w := world{f, &http.Client{Transport: wire.Authority.Transport()}}
	t.Cleanup(func() {
		w.client.CloseIdleConnections()
		f.Close()
	})
	return w
}

// get asks for a path and returns the answer, whose body is read, and its body.
func (w world) get(t *testing.T, path, ask string) (*http.Response, string, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if ask != "" {
		req.Header.Set("Range", ask)
	}
	resp, err := w.client.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	return resp, string(got), err
}

// oldHTTP leaves HTTP/2 out.
func oldHTTP(s *http.Server) { s.TLSConfig.NextProtos = []string{"http/1.1"} }

func TestFaults(t *testing.T) {
	open := make(chan struct{})
	close(open)
	for _, row := range []struct {
		name   string
		fault  Fault
		ask    string
		status int
		body   string
		cut    bool
	}{
		{"cut", Cut(4), "", 200, "0123", true},
		{"flip", Flip(2), "", 200, "0133456789", false},
		{"status", Status(429, "Retry-After", "7"), "", 429, "", false},
		{"ignore range", IgnoreRange, "bytes=4-5", 200, body, false},
		{"no fault, range", Slow(Rate(1 << 20)), "bytes=4-5", 206, "45", false},
		{"hold, released", Hold(4, open), "", 200, body, false},
	} {
		for _, wire := range []Wire{{}, {Alter: oldHTTP}} {
			t.Run(fmt.Sprintf("%s, HTTP/2 %t", row.name, wire.Alter == nil), func(t *testing.T) {
				handler, path := blobs()
				w := start(t, handler, wire)
				_, digest, _ := strings.Cut(path, "/blobs/")
				w.Inject(Rule{Match: Blob(digest), Times: 1, Fault: row.fault})
				resp, got, err := w.get(t, path, row.ask)
				if resp == nil {
					t.Fatal(err)
				}
				if want := map[bool]int{true: 2, false: 1}[wire.Alter == nil]; resp.ProtoMajor != want {
					t.Errorf("answered by %s, want HTTP/%d", resp.Proto, want)
				}
				if resp.StatusCode != row.status || (row.body != "" && got != row.body) || (err != nil) != row.cut {
					t.Errorf("got %d %q, error %v; want %d %q, cut %t", resp.StatusCode, got, err, row.status, row.body, row.cut)
				}
				if sent := w.Counts().BlobBytes[digest]; row.body != "" && sent != int64(len(row.body)) {
					t.Errorf("counted %d bytes, want %d", sent, len(row.body))
				}
				// The rule is used up.
				if resp, got, err := w.get(t, path, ""); err != nil || resp.StatusCode != 200 || got != body {
					t.Errorf("afterwards: %q, error %v", got, err)
				}
			})
		}
	}
}

func TestHoldWaits(t *testing.T) {
	handler, path := blobs()
	f := start(t, handler, Wire{})
	_, digest, _ := strings.Cut(path, "/blobs/")
	release := make(chan struct{})
	f.Inject(Rule{Fault: Hold(4, release)})
	done := make(chan error, 1)
	go func() {
		_, got, err := f.get(t, path, "")
		if err == nil && got != body {
			err = fmt.Errorf("got %q", got)
		}
		done <- err
	}()
	if err := f.WaitBytes(t.Context(), digest, 4); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		t.Fatalf("the body ended before it was released: %v", err)
	default:
	}
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.WaitBytes(ctx, digest, 1<<20); err == nil {
		t.Error("WaitBytes did not end with its context")
	}
}

// TestRestart has a front hand over in the midst of a body: who has time to finish
// does, who has none is cut off, and the next request finds the new server.
func TestRestart(t *testing.T) {
	for _, row := range []struct {
		name  string
		grace time.Duration
		cut   bool
	}{{"time to finish", time.Hour, false}, {"none", time.Millisecond, true}} {
		t.Run(row.name, func(t *testing.T) {
			handler, path := blobs()
			w := start(t, handler, Wire{})
			_, digest, _ := strings.Cut(path, "/blobs/")
			release := make(chan struct{})
			w.Inject(Rule{Times: 1, Fault: Hold(4, release)})
			done := make(chan error, 1)
			go func() {
				_, _, err := w.get(t, path, "")
				done <- err
			}()
			if err := w.WaitBytes(t.Context(), digest, 4); err != nil {
				t.Fatal(err)
			}
			if err := w.Restart(row.grace); err != nil {
				t.Fatal(err)
			}
			if !row.cut {
				close(release)
			}
			if err := <-done; (err != nil) != row.cut {
				t.Errorf("the body that was under way: %v, want cut %t", err, row.cut)
			}
			if _, got, err := w.get(t, path, ""); err != nil || got != body {
				t.Errorf("the new server answers %q, %v", got, err)
			}
		})
	}
}

// TestRefuse has the first streams refused: a client that may try again finds the
// server behind.
func TestRefuse(t *testing.T) {
	handler, path := blobs()
	var r Refusal
	w := start(t, handler, Wire{Accept: r.First(3)})
	resp, got, err := w.get(t, path, "")
	if err != nil || got != body || resp.ProtoMajor != 2 || r.Refused() != 3 {
		t.Errorf("got %q, %v, after %d refusals; want %q by HTTP/2 after 3", got, err, r.Refused(), body)
	}
}

// A client that has read all that Content-Length told closes the body without waiting for
// its end, which resets the stream in HTTP/2: what it has must be counted all the same.
func TestResetAfterTheLastByteIsCounted(t *testing.T) {
	const size = 14_364
	digest := sample.Digest(make([]byte, size))
	w := start(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(size))
		_, _ = w.Write(make([]byte, 3698))
		_, _ = w.Write(make([]byte, size-3698))
	}), Wire{})
	for i := range 300 {
		w.Reset()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.URL+"/v2/app/img/blobs/"+digest, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := w.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(resp.Body, make([]byte, size)); err != nil || resp.ProtoMajor != 2 {
			t.Fatal(err, resp.Proto)
		}
		_ = resp.Body.Close()
		w.client.CloseIdleConnections()
		if err := w.Restart(time.Second); err != nil { // every handler has ended
			t.Fatal(err)
		}
		if got := w.Counts().Bytes(digest); got != size {
			t.Fatalf("request %d: %d of %d bytes counted", i, got, size)
		}
	}
}
