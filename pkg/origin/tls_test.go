package origin

import (
	"bytes"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
)

func certPEM(s *httptest.Server) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
}

func TestTLSIsVerified(t *testing.T) {
	var hits int
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { hits++ }))
	srv.EnableHTTP2 = true
	srv.Config.ErrorLog = zap.NewStdLog(zap.NewNop())
	srv.StartTLS()
	defer srv.Close()
	ask := func(caFile string) error {
		c, err := New(Config{Proxy: "none", Hosts: []Host{{Name: testRegistry, Endpoint: srv.URL, CAFile: caFile}}}, zap.NewNop(), nil)
		if err != nil {
			return err
		}
		defer c.Close()
		resp, err := c.Head(t.Context(), tagRef("v1"), nil)
		if err == nil && resp.StatusCode != http.StatusOK {
			t.Errorf("status %d", resp.StatusCode)
		}
		return err
	}
	if err := ask(""); err == nil || !strings.Contains(err.Error(), "certificate") || hits != 0 {
		t.Errorf("unknown CA: %v, %d requests", err, hits)
	}
	if err := ask(mustWrite(t, "ca.pem", certPEM(srv))); err != nil || hits != 1 {
		t.Errorf("known CA: %v, %d requests", err, hits)
	}
	if err := ask(mustWrite(t, "ca.pem", "not a certificate")); err == nil || !strings.Contains(err.Error(), "no PEM certificate") {
		t.Errorf("broken CA file: %v", err)
	}
	if err := ask("/nonexistent/ca.pem"); err == nil || !strings.Contains(err.Error(), testRegistry) {
		t.Errorf("no CA file: %v", err)
	}
}

// TestBlobsOverTLS reads a blob, whole and from its middle, from servers that offer
// HTTP/2 as nearly every registry does, and from one that does not.
func TestBlobsOverTLS(t *testing.T) {
	want := content(1 << 20)
	for _, http2 := range []bool{true, false} {
		srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(want))
		}))
		srv.EnableHTTP2 = http2
		srv.Config.ErrorLog = zap.NewStdLog(zap.NewNop())
		srv.StartTLS()
		hosts := []Host{{Name: testRegistry, Endpoint: srv.URL, CAFile: mustWrite(t, "ca.pem", certPEM(srv))}}
		c, err := New(Config{Proxy: "none", Hosts: hosts}, zap.NewNop(), nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, off := range []int64{0, 1000} {
			body, err := c.Read(t.Context(), blobRef(want), nil, int64(len(want)), off, -1)
			if err != nil {
				t.Errorf("HTTP/2 offered: %t, from byte %d: %v", http2, off, err)
				continue
			}
			got, err := io.ReadAll(body)
			if err != nil || !bytes.Equal(got, want[off:]) {
				t.Errorf("HTTP/2 offered: %t, from byte %d: %d bytes, %v", http2, off, len(got), err)
			}
			_ = body.Close()
		}
		c.Close()
		srv.Close()
	}
}
