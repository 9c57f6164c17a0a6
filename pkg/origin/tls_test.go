package origin

import (
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

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
