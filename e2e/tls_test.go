package e2e

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/damselfly-p2p/damselfly/e2e/cluster"
	"github.com/damselfly-p2p/damselfly/e2e/origin"
	"github.com/damselfly-p2p/damselfly/e2e/sample"
)

// tlsRow is a registry that speaks in some way, and a node that is told of it.
type tlsRow struct {
	name string
	cfg  origin.Config
	// node is the node's configuration; nil: the registry with its caFile.
	node func(*origin.Origin) cluster.Config
	// all is in what every request to the registry is spoken by, some in what one is.
	all, some string
	// amid is done while half of the largest layer is sent and no more of it.
	amid func(*testing.T, *origin.Origin)
	// extra is how many bytes of that layer the origin may send beyond its size.
	extra int64
	// after is done and checked when the image has arrived.
	after func(*testing.T, *origin.Origin, *cluster.Member)
}

// TestTLS pulls through a node from registries as they are met: the image arrives, and
// the origin sends each layer once.
func TestTLS(t *testing.T) {
	for _, row := range append(tlsRows(t), http2Rows(t)...) {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			row.run(t)
		})
	}
}

func tlsRows(t *testing.T) []tlsRow {
	t.Helper()
	nginx := programs(t).Nginx
	var refusal origin.Refusal
	return []tlsRow{
		{name: "as nearly every registry", all: "TLS 1.3", some: "HTTP/2.0"},
		{name: "blobs in a bucket", cfg: origin.Config{Bucket: true}, all: "TLS 1.3", some: "HTTP/2.0"},
		{name: "no TLS", cfg: origin.Config{Plain: true}, all: "HTTP/1.1"},
		{name: "HTTP 1.1 only", cfg: altered(only("http/1.1")), all: "HTTP/1.1, TLS 1.3"},
		{name: "TLS 1.2 only", cfg: altered(oldTLS), all: "TLS 1.2", some: "HTTP/2.0"},
		{name: "nginx", cfg: origin.Config{Nginx: &origin.Nginx{Program: nginx}}, all: "TLSv1", some: "HTTP/2.0"},
		{
			// It closes connections by GOAWAY after so many requests.
			name: "nginx, two requests a connection",
			cfg:  origin.Config{Nginx: &origin.Nginx{Program: nginx, Settings: []string{"keepalive_requests 2;"}}}, some: "HTTP/2.0",
		},
		{
			// It refuses streams that a client opens before it is told the limit.
			name: "nginx, one stream a connection",
			cfg:  origin.Config{Nginx: &origin.Nginx{Program: nginx, Settings: []string{"http2_max_concurrent_streams 1;"}}}, some: "HTTP/2.0",
		},
		{name: "server told to go, lets finish", amid: restarted(time.Minute), some: "HTTP/2.0"},
		{name: "server told to go, cuts off", amid: restarted(time.Millisecond), some: "HTTP/2.0", extra: 1 << 20},
		{
			name: "streams refused", some: "HTTP/2.0", cfg: origin.Config{Wire: origin.Wire{Accept: refusal.First(2)}},
			after: func(t *testing.T, _ *origin.Origin, _ *cluster.Member) {
				if refusal.Refused() == 0 {
					t.Error("no stream was refused, so nothing was tested")
				}
			},
		},
		{name: "one stream at a time", cfg: altered(oneStream), some: "HTTP/2.0"},
		{
			// What a server has room for is what clients may push at once.
			name: "small windows", some: "HTTP/2.0", after: pushed,
			cfg: altered(smallWindows),
		},
		{name: "CA in the system's file", all: "TLS 1.3", some: "HTTP/2.0", node: trusting(func(o *origin.Origin) string {
			return "SSL_CERT_FILE=" + o.CAFile
		})},
		{name: "CA in the system's directory", all: "TLS 1.3", some: "HTTP/2.0", node: trusting(func(o *origin.Origin) string {
			return "SSL_CERT_DIR=" + filepath.Dir(o.CAFile)
		})},
	}
}

// http2Rows are registries from which bodies, too, can only be had by HTTP/2, and one
// that wants to know its clients.
func http2Rows(t *testing.T) []tlsRow {
	t.Helper()
	h2 := only("h2")
	refusing := altered(h2)
	refusing.Wire.Accept = new(origin.Refusal).First(2)
	rows := []tlsRow{
		{name: "HTTP 2 only", cfg: altered(h2)},
		{name: "HTTP 2 only, told to go, lets finish", cfg: altered(h2), amid: restarted(time.Minute)},
		{name: "HTTP 2 only, told to go, cuts off", cfg: altered(h2), amid: restarted(time.Millisecond), extra: 1 << 20},
		{name: "HTTP 2 only, streams refused", cfg: refusing},
		{name: "HTTP 2 only, one stream at a time", cfg: altered(func(s *http.Server) { h2(s); oneStream(s) })},
	}
	for i := range rows {
		rows[i].all = "HTTP/2.0, TLS 1.3"
	}
	authority, err := origin.NewAuthority(directory(t))
	must(t, err)
	return append(rows, tlsRow{
		name: "client certificate", all: "TLS 1.3", some: "HTTP/2.0",
		cfg: origin.Config{Wire: origin.Wire{Authority: authority, Alter: func(s *http.Server) {
			s.TLSConfig.ClientAuth, s.TLSConfig.ClientCAs = tls.RequireAndVerifyClientCert, authority.Roots()
		}}},
		node: func(o *origin.Origin) cluster.Config {
			cert, err := authority.Client("node")
			must(t, err)
			certFile, keyFile, err := authority.Files("node", cert)
			must(t, err)
			return cluster.Config{Hosts: []cluster.Host{{
				Name: registry, Endpoint: o.URL, CAFile: o.CAFile, CertFile: certFile, KeyFile: keyFile,
			}}}
		},
	})
}

func altered(alter func(*http.Server)) origin.Config {
	return origin.Config{Wire: origin.Wire{Alter: alter}}
}

// only has a server offer one protocol.
func only(protocol string) func(*http.Server) {
	return func(s *http.Server) {
		s.TLSConfig.NextProtos = []string{protocol}
		// crypto/tls lets clients of HTTP/1.1 pass where HTTP/2 alone is offered.
		strict := s.TLSConfig.Clone()
		strict.NextProtos = []string{"none"}
		s.TLSConfig.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if slices.Contains(hello.SupportedProtos, protocol) {
				return nil, nil
			}
			return strict, nil
		}
	}
}

func oldTLS(s *http.Server)    { s.TLSConfig.MaxVersion = tls.VersionTLS12 }
func oneStream(s *http.Server) { s.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: 1} }

func smallWindows(s *http.Server) {
	s.HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: 16 << 10, MaxReceiveBufferPerConnection: 64 << 10, MaxReadFrameSize: 16 << 10}
}

// trusting is a node that has the registry's CA from the system that it runs on.
func trusting(env func(*origin.Origin) string) func(*origin.Origin) cluster.Config {
	return func(o *origin.Origin) cluster.Config {
		return cluster.Config{Env: []string{env(o)}, Hosts: unlisted(o)}
	}
}

// unlisted says where the registry is and nothing of its CA.
func unlisted(o *origin.Origin) []cluster.Host {
	return []cluster.Host{{Name: registry, Endpoint: o.URL}}
}

func restarted(grace time.Duration) func(*testing.T, *origin.Origin) {
	return func(t *testing.T, o *origin.Origin) { must(t, o.Restart(grace)) }
}

func (row tlsRow) run(t *testing.T) {
	cfg := row.cfg
	cfg.Kind = origin.Token
	o := startRegistry(t, cfg)
	img := push(t, o, "app/img", sample.Medium(), sample.OCI)
	var node cluster.Config
	if row.node != nil {
		node = row.node(o)
	}
	node.Nodes, node.Alone = 1, true
	c := startConfig(t, o, node)
	if row.amid == nil {
		pullAll(t, o, c.Nodes, img, "app/img")
	} else {
		row.pullAmid(t, o, c, img)
	}
	row.checkSent(t, o, img)
	row.checkSpoken(t, o.Counts().Spoken)
	if row.after != nil {
		row.after(t, o, c.Nodes[0])
	}
}

// pullAmid pulls, and does what the row does while half of a layer is there.
func (row tlsRow) pullAmid(t *testing.T, o *origin.Origin, c *cluster.Cluster, img *sample.Image) {
	layer, release := largest(img), make(chan struct{})
	o.Inject(origin.Rule{Match: origin.Blob(layer.Digest), Times: 1, Fault: origin.Hold(layer.Size()/2, release)})
	done := make(chan error, 1)
	go func() { done <- pullNodes(deadline(t), o, c.Nodes, img, "app/img") }()
	must(t, o.WaitBytes(deadline(t), layer.Digest, layer.Size()/2))
	row.amid(t, o)
	if row.extra == 0 {
		close(release)
	}
	must(t, <-done)
}

func (row tlsRow) checkSent(t *testing.T, o *origin.Origin, img *sample.Image) {
	t.Helper()
	if row.extra == 0 {
		checkOriginPaidOnce(t, o, img)
		return
	}
	layer := largest(img)
	if sent := o.Counts().BlobBytes[layer.Digest]; sent > layer.Size()+row.extra {
		t.Errorf("the origin sent %d bytes of a layer of %d, want at most %d more", sent, layer.Size(), row.extra)
	}
	if gets := o.Counts().BlobGets[layer.Digest]; gets < 2 {
		t.Error("the layer was asked for once, so nothing was cut off")
	}
}

func (row tlsRow) checkSpoken(t *testing.T, spoken map[string]int) {
	t.Helper()
	t.Logf("requests by %v", spoken)
	some := false
	for by := range spoken {
		some = some || strings.Contains(by, row.some)
		if !strings.Contains(by, row.all) {
			t.Errorf("the registry was asked by %s, want %s", by, row.all)
		}
	}
	if !some {
		t.Errorf("the registry was asked by %v, want some by %s", spoken, row.some)
	}
}

// pushed pushes a blob through the node's proxy, and finds it in the registry.
func pushed(t *testing.T, o *origin.Origin, node *cluster.Member) {
	blob := sample.Blob{Data: bytes.Repeat([]byte("0123456789abcdef"), 1<<16)}
	blob.Digest = sample.Digest(blob.Data)
	authorization, err := o.PushAuthorization(origin.Reader, "app/img")
	must(t, err)
	client := proxied(t, node)
	send := func(method, target string, body []byte, want int) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(deadline(t), method, "https://"+registry+target, bytes.NewReader(body))
		must(t, err)
		req.Header.Set("Authorization", authorization)
		resp, err := client.Do(req)
		must(t, err)
		defer resp.Body.Close()
		if answer, err := io.ReadAll(resp.Body); resp.StatusCode != want || err != nil {
			t.Fatalf("%s %s: %s, %q, %v; want %d", method, target, resp.Status, answer, err, want)
		}
		return resp
	}
	resp := send(http.MethodPost, "/v2/app/img/blobs/uploads/", nil, http.StatusAccepted)
	location, err := resp.Location()
	must(t, err)
	query := location.Query()
	query.Set("digest", blob.Digest)
	send(http.MethodPut, location.Path+"?"+query.Encode(), blob.Data, http.StatusCreated)
	must(t, straight(o).Blob(deadline(t), "app/img", blob.Digest, blob.Size()))
}

// proxied is a client that uses the node's HTTPS proxy and trusts it.
func proxied(t *testing.T, node *cluster.Member) *http.Client {
	t.Helper()
	roots := x509.NewCertPool()
	content, err := os.ReadFile(node.CAFile)
	must(t, err)
	if !roots.AppendCertsFromPEM(content) {
		t.Fatalf("%s holds no certificate", node.CAFile)
	}
	at, err := url.Parse(node.Proxy)
	must(t, err)
	transport := &http.Transport{Proxy: http.ProxyURL(at), TLSClientConfig: &tls.Config{RootCAs: roots}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// TestUnknownCA pulls from a registry whose CA the node has not been told of: the
// client is told that, and the registry is not asked.
func TestUnknownCA(t *testing.T) {
	o := startOrigin(t, origin.Token, false)
	push(t, o, "app/img", sample.Small(), sample.OCI)
	c := startConfig(t, o, cluster.Config{Nodes: 1, Alone: true, Hosts: unlisted(o)})
	p := through(o, c.Nodes[0])
	_, err := p.Get(deadline(t), "/v2/app/img/manifests/v1")
	if statusOf(err) != http.StatusBadGateway || !strings.Contains(fmt.Sprint(err), "certificate") {
		t.Errorf("got %v, want 502 that speaks of the certificate", err)
	}
	if got := o.Counts().Requests; got != 0 {
		t.Errorf("the registry was asked %d times", got)
	}
}
