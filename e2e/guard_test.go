package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/damselfly-p2p/damselfly/e2e/origin"
	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// TestSignedURL reads a URL whose query is its credential, by the seed: neither the
// scheduler's trace nor any log or file of the cluster holds it.
func TestSignedURL(t *testing.T) {
	trace := filepath.Join(t.TempDir(), "trace")
	t.Setenv("DAMSELFLY_E2E_TRACE", trace)
	o := startOrigin(t, origin.Token, false)
	c := startCluster(t, o, 1, 1)
	data := make([]byte, 3<<20)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(data)
	bucket := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("X-Amz-Signature") != "s3cret" {
			http.Error(w, "not signed", http.StatusForbidden)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	}))
	defer bucket.Close()
	signed := bucket.URL + "/a/b?X-Amz-Signature=s3cret"
	target := fmt.Sprintf("/damselfly/v1/blob?digest=%s&size=%d&url=%s", blob.FromBytes(data), len(data), url.QueryEscape(signed))
	resp, body := request(t, "GET", c.Nodes[0].Mirror+target, nil)
	if resp.StatusCode != http.StatusOK || !bytes.Equal(body, data) {
		t.Fatalf("%s, %d bytes", resp.Status, len(body))
	}
	pulled, err := c.Seeds[0].Pulled(deadline(t))
	must(t, err)
	if pulled["origin"] != int64(len(data)) {
		t.Errorf("the seed pulled %v", pulled)
	}
	must(t, c.Scheduler.Stop()) // it writes the rest of its trace
	root := filepath.Dir(c.Nodes[0].Dir)
	for _, dir := range []string{root, filepath.Dir(trace)} {
		must(t, filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return nil // files come and go
			}
			if text, err := os.ReadFile(name); err == nil && bytes.Contains(text, []byte("s3cret")) {
				t.Errorf("%s holds the signature", name)
			}
			return nil
		}))
	}
	if text, err := os.ReadFile(trace); err != nil || len(text) == 0 {
		t.Errorf("there is no trace: %v", err)
	}
}

// TestGuards has a node asked to reach a server at this machine's own address, by each
// face, by a redirect, and by a name that was made to lead to the node.
func TestGuards(t *testing.T) {
	o := startOrigin(t, origin.Token, false)
	c := startAlone(t, o)
	node := c.Nodes[0]
	var hits atomic.Int32
	inside := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		hits.Add(1)
		_, _ = w.Write([]byte("s3cret"))
	}))
	must(t, inside.Listener.Close())
	inside.Listener = ownListener(t)
	inside.Start()
	defer inside.Close()
	outside := httptest.NewServer(http.RedirectHandler(inside.URL+"/", http.StatusFound))
	defer outside.Close()
	d := blob.FromBytes([]byte("s3cret"))
	at := inside.Listener.Addr().String()
	for _, target := range []string{
		"/damselfly/v1/blob?digest=" + d.String() + "&url=" + url.QueryEscape(inside.URL+"/x"),
		"/damselfly/v1/blob?digest=" + d.String() + "&url=" + url.QueryEscape(outside.URL+"/x"),
		"/v2/app/img/manifests/v1?ns=" + at,
		"/v2/app/img/blobs/" + d.String() + "?ns=" + at,
		"/v2/" + at + "/app/img/manifests/v1",
		"/v2/app/img/manifests/v1?ns=10.0.0.1",
	} {
		resp, body := request(t, "GET", node.Mirror+target, nil)
		if resp.StatusCode < 400 || bytes.Contains(body, []byte("s3cret")) {
			t.Errorf("%s: %s\n%s", target, resp.Status, body)
		}
	}
	for _, target := range []string{at, "10.0.0.1:443", "169.254.169.254:80"} {
		if line := say(t, node.Proxy, "CONNECT "+target+" HTTP/1.1\r\nHost: "+target+"\r\n\r\n"); !strings.Contains(line, " 403 ") {
			t.Errorf("CONNECT %s: %s", target, line)
		}
	}
	if n := hits.Load(); n != 0 {
		t.Errorf("%d requests reached this machine", n)
	}
	for _, head := range []string{"Host: rebound.example.com:65001\r\n", "Host: 127.0.0.1\r\nOrigin: https://evil.example.com\r\n", "Host: localhost\r\nSec-Fetch-Site: cross-site\r\n"} {
		if line := say(t, node.Mirror, "GET /v2/ HTTP/1.1\r\n"+head+"\r\n"); !strings.Contains(line, " 403 ") {
			t.Errorf("%q: %s", head, line)
		}
	}
}

// say sends a request as it stands and returns the first line of the answer.
func say(t *testing.T, base, text string) string {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	must(t, err)
	defer conn.Close()
	_, err = conn.Write([]byte(text))
	must(t, err)
	line, err := bufio.NewReader(conn).ReadString('\n')
	must(t, err)
	return line
}

// ownListener listens at an address of this machine that is not loopback.
func ownListener(t *testing.T) net.Listener {
	t.Helper()
	list, err := net.InterfaceAddrs()
	must(t, err)
	for _, a := range list {
		if ip := a.(*net.IPNet).IP; ip.To4() != nil && !ip.IsLoopback() {
			l, err := net.Listen("tcp", net.JoinHostPort(ip.String(), "0"))
			must(t, err)
			return l
		}
	}
	t.Fatal("this machine has loopback alone; give it an address")
	return nil
}
