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

func get(t *testing.T, url, ask string) (int, string, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if ask != "" {
		req.Header.Set("Range", ask)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(got), err
}

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
		t.Run(row.name, func(t *testing.T) {
			handler, path := blobs()
			f, err := NewHandlerFront(handler, NewCounter())
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			_, digest, _ := strings.Cut(path, "/blobs/")
			f.Inject(Rule{Match: Blob(digest), Times: 1, Fault: row.fault})
			status, got, err := get(t, f.URL+path, row.ask)
			if status != row.status || (row.body != "" && got != row.body) || (err != nil) != row.cut {
				t.Errorf("got %d %q, error %v; want %d %q, cut %t", status, got, err, row.status, row.body, row.cut)
			}
			if sent := f.Counts().BlobBytes[digest]; row.body != "" && sent != int64(len(row.body)) {
				t.Errorf("counted %d bytes, want %d", sent, len(row.body))
			}
			// The rule is used up.
			if status, got, err := get(t, f.URL+path, ""); status != 200 || got != body || err != nil {
				t.Errorf("afterwards: %d %q, error %v", status, got, err)
			}
		})
	}
}

func TestHoldWaits(t *testing.T) {
	handler, path := blobs()
	f, err := NewHandlerFront(handler, NewCounter())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, digest, _ := strings.Cut(path, "/blobs/")
	release := make(chan struct{})
	f.Inject(Rule{Fault: Hold(4, release)})
	done := make(chan error, 1)
	go func() {
		_, got, err := get(t, f.URL+path, "")
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
