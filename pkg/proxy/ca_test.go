package proxy_test

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/proxy"
)

func TestProxysCertificate(t *testing.T) {
	w, server := proxyWorld(t, local)
	tr := &http.Transport{Proxy: http.ProxyURL(mustURL(t, server.URL))}
	defer tr.CloseIdleConnections()
	if g := fetch(t, &http.Client{Transport: tr}, "https://registry.example.com/v2/"); g.err == nil || !strings.Contains(g.err.Error(), "certificate") {
		t.Errorf("a client without our CA: %d %v", g.status, g.err)
	}
	c := through(t, w, server)
	resp, err := c.Get("https://registry.example.com/v2/")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	leaf := resp.TLS.PeerCertificates[0]
	if leaf.IsCA || leaf.VerifyHostname("registry.example.com") != nil || leaf.VerifyHostname("other.example.com") == nil ||
		time.Until(leaf.NotAfter) > 25*time.Hour {
		t.Errorf("leaf: %v %v", leaf.DNSNames, leaf.NotAfter)
	}
}

func TestCAFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	var files [8]string
	var all sync.WaitGroup
	for i := range files {
		all.Go(func() {
			var err error
			if files[i], err = proxy.EnsureCA(dir); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	first, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(first, []byte("PRIVATE")) {
		t.Error("the key is in the public file")
	}
	key := filepath.Join(dir, "ca.key")
	if st, err := os.Stat(key); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st.Mode(), err)
	}
	if names, _ := os.ReadDir(dir); len(names) != 2 {
		t.Errorf("%v", names)
	}
	if err := os.Remove(files[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := proxy.EnsureCA(dir); err != nil {
		t.Fatal(err)
	}
	if again, _ := os.ReadFile(files[0]); !bytes.Equal(again, first) {
		t.Error("another CA after a restart")
	}
	if err := os.Chmod(key, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := proxy.EnsureCA(dir); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key that all may read: %v", err)
	}
	if err := os.WriteFile(key, []byte("no key"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(key, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := proxy.EnsureCA(dir); err == nil || !strings.Contains(err.Error(), key) {
		t.Errorf("a broken key: %v", err)
	}
}
