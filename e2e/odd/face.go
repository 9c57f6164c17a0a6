package odd

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"time"
)

// Face is a way to reach registries.
type Face struct {
	// Name is the face's in messages.
	Name string

	url    func(host, path string) string
	client func() *http.Client
}

// Faces are the ways that clients of a node have, and the way around it.
type Faces struct {
	// Direct is around the node, NS the mirror that is told the registry by ns=, Path
	// the mirror that is told it by the path, Connect the proxy of HTTPS.
	Direct, NS, Path, Connect Face
}

// NewFaces are the faces of a node whose mirror and proxy are at these URLs. The
// files are the CAs of the registries and of the proxy.
func NewFaces(mirror, proxy, registryCA, proxyCA string) (Faces, error) {
	roots := x509.NewCertPool()
	for _, file := range []string{registryCA, proxyCA} {
		content, err := os.ReadFile(file)
		if err != nil || !roots.AppendCertsFromPEM(content) {
			return Faces{}, fmt.Errorf("CA in %s cannot be read: %w", file, err)
		}
	}
	at, err := url.Parse(proxy)
	if err != nil {
		return Faces{}, fmt.Errorf("proxy: %w", err)
	}
	straight := func(host, path string) string { return "https://" + host + path }
	client := func(proxy func(*http.Request) (*url.URL, error)) func() *http.Client {
		return func() *http.Client {
			return &http.Client{Transport: &http.Transport{
				TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true, Proxy: proxy,
				TLSHandshakeTimeout: 20 * time.Second,
			}}
		}
	}
	return Faces{
		Direct:  Face{"direct", straight, client(nil)},
		Connect: Face{"connect", straight, client(http.ProxyURL(at))},
		NS: Face{"ns", func(host, path string) string {
			return mirror + path + "?ns=" + url.QueryEscape(host)
		}, client(nil)},
		Path: Face{"path", func(host, path string) string {
			if path == "/v2/" {
				return mirror + path
			}
			return mirror + "/v2/" + host + path[len("/v2"):]
		}, client(nil)},
	}, nil
}
