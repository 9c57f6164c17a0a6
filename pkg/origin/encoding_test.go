package origin

import (
	"bytes"
	"errors"
	"net/http"
	"testing"
	"testing/synctest"
)

// An origin may encode whatever it is not asked for as it is: every request of this
// node asks so, and a client's own wish is the client's.
func TestIdentityIsAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, bearerChallenge)
		w.realm.public = true
		c := testClient(t, w.net, nil)
		if got, err := readAll(t, c, blobRef(w.blob), nil, int64(len(w.blob)), 0, -1); err != nil || !bytes.Equal(got, w.blob) {
			t.Errorf("Read: %d bytes, %v", len(got), err)
		}
		if _, err := c.Stat(t.Context(), tagRef("v1"), nil); err != nil {
			t.Errorf("Stat: %v", err)
		}
		resp, err := c.Solver().Get(t.Context(), tagRef("v1"), nil)
		status(t, resp, err)
		for _, r := range append(w.reg.all(), w.realm.rec.all()...) {
			if got := r.Header.Values("Accept-Encoding"); len(got) != 1 || got[0] != "identity" {
				t.Errorf("%s %s asked for %q", r.Method, r.URL.Path, got)
			}
		}
		before := w.reg.count()
		header := withAuth("Bearer x")
		header.Set("Accept-Encoding", "zstd, gzip")
		resp, err = c.Pass(t.Context(), http.MethodGet, tagRef("v1"), header)
		status(t, resp, err)
		if r := w.reg.all()[before]; r.Header.Get("Accept-Encoding") != "zstd, gzip" {
			t.Errorf("the client's wish became %q", r.Header.Get("Accept-Encoding"))
		}
	})
}

// Encoded bytes are not those that a digest is of.
func TestEncodedAnswerToAReadOfADigest(t *testing.T) {
	b := content(1000)
	for coding, ok := range map[string]bool{"gzip": false, "identity, GZip": false, "br": false, "identity": true, "aws-chunked": true} {
		synctest.Test(t, func(t *testing.T) {
			n, rec := registryOf(t, func(w http.ResponseWriter, r *http.Request, _ int) {
				w.Header().Set("Content-Encoding", coding)
				serveBytes(w, r, b)
			})
			got, err := readAll(t, testClient(t, n, nil), blobRef(b), nil, 1000, 0, -1)
			if ok && (err != nil || !bytes.Equal(got, b)) || !ok && (!errors.Is(err, ErrProtocol) || len(got) > 0) || rec.count() != 1 {
				t.Errorf("%s: %d bytes, %v, %d requests", coding, len(got), err, rec.count())
			}
		})
	}
}
