package origin

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/net/http2"
)

// authority is a private CA, such as a company has.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t}
	a.key, a.cert, a.pem = a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "private CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	return a
}

// sign makes a certificate; the CA's own while there is none.
func (a *authority) sign(c *x509.Certificate) (*ecdsa.PrivateKey, *x509.Certificate, string) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c.SerialNumber, _ = rand.Int(rand.Reader, big.NewInt(1<<62))
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return key, cert, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// client writes a client certificate of that name and its key to the files.
func (a *authority) client(name, certFile, keyFile string) {
	a.t.Helper()
	key, _, text := a.sign(&x509.Certificate{Subject: pkix.Name{CommonName: name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for file, b := range map[string][]byte{certFile: []byte(text), keyFile: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})} {
		if err := os.WriteFile(file, b, 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
}

// serve starts a server of that CA that offers protocols, and asks for a client
// certificate as auth says.
func (a *authority) serve(auth tls.ClientAuthType, h http.Handler, protocols ...string) *httptest.Server {
	a.t.Helper()
	key, cert, _ := a.sign(&x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = zap.NewStdLog(zap.NewNop())
	s.EnableHTTP2 = true
	s.TLS = &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}},
		ClientAuth:   auth, ClientCAs: pool, NextProtos: protocols,
	}
	s.StartTLS()
	a.t.Cleanup(s.Close)
	return s
}

// serveHTTP2Alone serves h by HTTP/2 whatever the client offered; who did not
// offer it is offered protocols.
func (a *authority) serveHTTP2Alone(h http.Handler, protocols []string) string {
	a.t.Helper()
	key, cert, _ := a.sign(&x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
	config := &tls.Config{NextProtos: []string{"h2"}, Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}}
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if slices.Contains(hello.SupportedProtos, "h2") {
			return nil, nil
		}
		other := config.Clone()
		other.GetConfigForClient, other.NextProtos = nil, protocols
		return other, nil
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		a.t.Fatal(err)
	}
	var served sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	served.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			served.Go(func() {
				defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
				if conn.(*tls.Conn).HandshakeContext(ctx) == nil {
					//nolint:staticcheck // net/http has no server that speaks HTTP/2 alone over TLS
					(&http2.Server{}).ServeConn(conn, &http2.ServeConnOpts{Handler: h, BaseConfig: &http.Server{ErrorLog: zap.NewStdLog(zap.NewNop())}})
				}
				_ = conn.Close()
			})
		}
	})
	a.t.Cleanup(func() {
		cancel()
		_ = l.Close()
		served.Wait()
	})
	return "https://" + l.Addr().String()
}

// shown is the name in the client certificate of a request; "" without one.
func shown(r *http.Request) string {
	if len(r.TLS.PeerCertificates) == 0 {
		return ""
	}
	return r.TLS.PeerCertificates[0].Subject.CommonName
}

func liveClient(t *testing.T, h Host) *Client {
	t.Helper()
	h.Name = testRegistry
	c, err := New(Config{Proxy: "none", Allow: []string{"127.0.0.0/8"}, Hosts: []Host{h}}, zap.NewNop(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// company is a registry, its realm and its storage on three hosts under one
// private CA, all of HTTP/2. The registry wants a client certificate; the others
// take one if they get it.
type company struct {
	ca                       *authority
	registry, realm, storage *httptest.Server
	blob                     []byte
	names                    map[string]string // of the certificate that each was shown
}

func newCompany(t *testing.T, auth tls.ClientAuthType) *company {
	w := &company{ca: newAuthority(t), blob: content(1 << 20), names: map[string]string{}}
	w.storage = w.ca.serve(tls.RequestClientCert, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.names["storage"] = shown(r)
		serveBytes(rw, r, w.blob)
	}))
	w.realm = w.ca.serve(tls.RequestClientCert, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.names["realm"] = shown(r)
		_, _ = io.WriteString(rw, `{"token":"open"}`)
	}))
	w.registry = w.ca.serve(auth, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.names["registry"] = shown(r)
		switch {
		case r.Header.Get("Authorization") != "Bearer open":
			rw.Header().Set("Www-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="reg",scope="x"`, w.realm.URL))
			rw.WriteHeader(http.StatusUnauthorized)
		case strings.Contains(r.URL.Path, "/blobs/"):
			http.Redirect(rw, r, w.storage.URL+"/data", http.StatusTemporaryRedirect)
		}
	}))
	return w
}

func (w *company) read(t *testing.T, c *Client) error {
	got, err := readAll(t, c, blobRef(w.blob), nil, int64(len(w.blob)), 0, -1)
	if err == nil && !bytes.Equal(got, w.blob) {
		t.Errorf("other bytes: %d of %d", len(got), len(w.blob))
	}
	return err
}

// A company's CA is given once, for the registry; its realm and its storage are
// elsewhere.
func TestCAServesTheWholeConversation(t *testing.T) {
	w := newCompany(t, tls.NoClientCert)
	c := liveClient(t, Host{Endpoint: w.registry.URL, CAFile: mustWrite(t, "ca.pem", w.ca.pem)})
	if err := w.read(t, c); err != nil {
		t.Errorf("blob by realm and redirect under one CA: %v", err)
	}
	resp, err := c.Solver().Head(t.Context(), tagRef("v1"), nil)
	if code := status(t, resp, err); code != http.StatusOK || resp.Proto != "HTTP/2.0" {
		t.Errorf("manifest: %d by %s", code, resp.Proto)
	}
	// It is not a CA for others.
	file := Ref{Kind: KindURL, URL: w.storage.URL + "/data"}
	if _, err := c.Get(t.Context(), file, nil); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a conversation that begins elsewhere: %v", err)
	}
}

// The client certificate opens the registry, and nobody else sees it.
func TestClientCertificate(t *testing.T) {
	w := newCompany(t, tls.RequireAndVerifyClientCert)
	dir := t.TempDir()
	h := Host{
		Endpoint: w.registry.URL, CAFile: mustWrite(t, "ca.pem", w.ca.pem),
		CertFile: filepath.Join(dir, "tls.crt"), KeyFile: filepath.Join(dir, "tls.key"),
	}
	w.ca.client("node-1", h.CertFile, h.KeyFile)
	c := liveClient(t, h)
	if err := w.read(t, c); err != nil {
		t.Errorf("with the certificate: %v", err)
	}
	if got := fmt.Sprint(w.names); got != "map[realm: registry:node-1 storage:]" {
		t.Errorf("shown to each: %s", got)
	}
	without := liveClient(t, Host{Endpoint: w.registry.URL, CAFile: h.CAFile})
	if err := w.read(t, without); err == nil || !strings.Contains(err.Error(), "certFile") {
		t.Errorf("without the certificate: %v", err)
	}
	// A hop elsewhere that leads back chose the path: it is not ours to vouch for.
	back := w.ca.serve(tls.NoClientCert, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		http.Redirect(rw, r, w.registry.URL+"/v2/other/blobs/x", http.StatusTemporaryRedirect)
	}))
	w.storage.Config.Handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		http.Redirect(rw, r, back.URL, http.StatusTemporaryRedirect)
	})
	c = liveClient(t, h)
	if err := w.read(t, c); err == nil || !strings.Contains(err.Error(), "certFile") {
		t.Errorf("at a path that another host chose the certificate was shown: %v", err)
	}

	// A renewed one is used by the next connection; a half-written one is not.
	w.ca.client("node-1-renewed", h.CertFile, h.KeyFile)
	c.Close()
	_, _ = c.Solver().Head(t.Context(), tagRef("v1"), nil)
	if w.names["registry"] != "node-1-renewed" {
		t.Errorf("after the files changed: %q", w.names["registry"])
	}
	if err := os.WriteFile(h.KeyFile, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.Close()
	resp, err := c.Solver().Head(t.Context(), tagRef("v1"), nil)
	if code := status(t, resp, err); code != http.StatusOK {
		t.Errorf("while the key is half written: %d", code)
	}
}

func TestBadFilesOfAHost(t *testing.T) {
	ca := newAuthority(t)
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	ca.client("node", cert, key)
	caFile := mustWrite(t, "ca.pem", ca.pem)
	for name, c := range map[string]struct {
		host  Host
		wants []string
	}{
		"no CA file":        {Host{CAFile: "/nonexistent/ca.pem"}, []string{"caFile", "/nonexistent/ca.pem", "want"}},
		"CA without PEM":    {Host{CAFile: mustWrite(t, "x.pem", "no")}, []string{"caFile", "x.pem", "want"}},
		"no certificate":    {Host{CertFile: "/nonexistent/tls.crt", KeyFile: key}, []string{"certFile", "/nonexistent/tls.crt", "want"}},
		"no key":            {Host{CertFile: cert, KeyFile: "/nonexistent/tls.key"}, []string{"keyFile", "/nonexistent/tls.key", "want"}},
		"key of another":    {Host{CertFile: caFile, KeyFile: key}, []string{caFile, key, "want"}},
		"certificate alone": {Host{CertFile: cert}, []string{"keyFile", "give both"}},
	} {
		c.host.Name = testRegistry
		_, err := New(Config{Hosts: []Host{c.host}}, zap.NewNop(), nil)
		if err == nil {
			t.Errorf("%s: New takes it", name)
			continue
		}
		for _, want := range append(c.wants, testRegistry) {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %q does not say %q", name, err, want)
			}
		}
	}
	two := []Host{{Name: "a.example", Endpoint: "https://r.example/a", CAFile: caFile}, {Name: "b.example", Endpoint: "https://r.example/b", CAFile: mustWrite(t, "other.pem", ca.pem)}}
	if _, err := New(Config{Hosts: two}, zap.NewNop(), nil); err == nil || !strings.Contains(err.Error(), "a.example and b.example") {
		t.Errorf("two CAs for one endpoint: %v", err)
	}
}

// A server that speaks HTTP/2 alone serves blobs too, and is asked right at once
// the next time.
func TestBlobsFromHTTP2Alone(t *testing.T) {
	ca, want := newAuthority(t), content(1<<20)
	var hits atomic.Int32
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hits.Add(1)
		if r.ProtoMajor != 2 {
			t.Errorf("asked by %s", r.Proto)
		}
		serveBytes(w, r, want)
	})
	for name, protocols := range map[string][]string{
		"refuses in the handshake":       {"h2-and-no-other"},
		"answers by HTTP/2 all the same": nil,
	} {
		hits.Store(0)
		url := ca.serveHTTP2Alone(h, protocols)
		c := liveClient(t, Host{Endpoint: url, CAFile: mustWrite(t, "ca.pem", ca.pem)})
		for i := range 2 {
			got, err := readAll(t, c, blobRef(want), nil, int64(len(want)), 0, -1)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s, read %d: %d bytes, %v", name, i, len(got), err)
			}
		}
		if hits.Load() != 2 {
			t.Errorf("%s: %d requests for two reads", name, hits.Load())
		}
		if _, ok := c.wire.http2Only.get(originOf(c.endpoints[testRegistry])); !ok {
			t.Errorf("%s: it is not remembered", name)
		}
	}
}

// A registry is the same one with its scheme's default port and without, however
// the list and the reference spell it.
func TestListedNamesWithPorts(t *testing.T) {
	for _, c := range []struct {
		listed, endpoint, asked string
		same                    bool
	}{
		{"r.example", "http://10.0.0.1:5000", "r.example:80", true},
		{"r.example:80", "http://10.0.0.1:5000", "r.example", true},
		{"r.example", "https://10.0.0.1:5000", "r.example:443", true},
		{"r.example:443", "https://10.0.0.1:5000", "r.example", true},
		{"registry", "https://10.0.0.1:5000", "registry:443", true},
		{"registry:443", "https://10.0.0.1:5000", "registry", true},
		{"docker.io", "http://10.0.0.1:5000", "registry-1.docker.io:80", true},
		{"docker.io", "https://10.0.0.1:5000", "index.docker.io:443", true},
		{"r.example", "https://10.0.0.1:5000", "r.example:80", false},
		{"r.example", "http://10.0.0.1:5000", "r.example:5000", false},
	} {
		n := newMemNet()
		client, err := newClient(Config{Proxy: "none", OnlyListed: true, Hosts: []Host{{Name: c.listed, Endpoint: c.endpoint}}}, zap.NewNop(), nil, n.dial)
		if err != nil {
			t.Fatal(err)
		}
		list, err := client.host(Ref{Registry: c.listed})
		if err != nil {
			t.Fatal(err)
		}
		got, err := client.host(Ref{Registry: c.asked})
		if c.same != (err == nil && got == list) {
			t.Errorf("%s listed at %s, asked as %s: %v, %v", c.listed, c.endpoint, c.asked, got, err)
		}
	}
}

// A registry at another endpoint than its name may name its realm by its name.
func TestRealmAtTheNameOfAnEndpoint(t *testing.T) {
	for _, identity := range []bool{false, true} { // by GET, and by POST
		n, asked := newMemNet(), []string{}
		n.serve(t, "10.0.0.1:80", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			switch {
			case strings.HasPrefix(r.URL.Path, "/prefix/token"):
				asked = append(asked, fmt.Sprint(r.Method, " ", strings.Contains(string(body), "refresh_token=identity")))
				_, _ = io.WriteString(w, `{"token":"open","access_token":"open"}`)
			case r.Header.Get("Authorization") != "Bearer open":
				w.Header().Set("Www-Authenticate", `Bearer realm="http://`+testRegistry+`/token",service="reg",scope="x"`)
				w.WriteHeader(http.StatusUnauthorized)
			}
		}))
		c := testClient(t, n, func(c *Config) {
			c.Hosts = []Host{{Name: testRegistry, Endpoint: "http://10.0.0.1/prefix"}}
			if identity {
				c.DockerConfig = mustWrite(t, "c.json", `{"auths":{"`+testRegistry+`":{"identitytoken":"identity"}}}`)
			}
		})
		resp, err := c.Solver().Head(t.Context(), tagRef("v1"), nil)
		want := "[GET false]"
		if identity {
			want = "[POST true]"
		}
		if code := status(t, resp, err); code != http.StatusOK || fmt.Sprint(asked) != want {
			t.Errorf("%d, realm asked by %v", code, asked)
		}
		if n.dials[1] != testRegistry+":80" {
			t.Errorf("dialled %v; what the realm spells comes first", n.dials)
		}
	}
}
