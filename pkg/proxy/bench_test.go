package proxy_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
	"github.com/damselfly-p2p/damselfly/pkg/proxy"
)

// shelf holds one blob, as a file or as content that is here already.
type shelf struct {
	file string
	data []byte
}

func (s shelf) Open(context.Context, proxy.Request) (proxy.Handle, error) { return s, nil }

func (s shelf) Sealed() (*os.File, bool) {
	if s.file == "" {
		return nil, false
	}
	f, err := os.Open(s.file)
	return f, err == nil
}

func (s shelf) Content() io.ReadSeeker             { return bytes.NewReader(s.data) }
func (s shelf) Ready(context.Context, int64) error { return nil }
func (s shelf) Close() error                       { return nil }

// BenchmarkBlob sends a blob over loopback; the client reads and drops it.
func BenchmarkBlob(b *testing.B) {
	data := noise(64 << 20)
	file := filepath.Join(b.TempDir(), "blob")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		b.Fatal(err)
	}
	g := newRegistry()
	g.keep("app/img", data)
	for name, s := range map[string]shelf{"sealed": {file: file, data: data}, "waiting": {data: data}} {
		b.Run(name, func(b *testing.B) {
			p, err := proxy.New(proxy.Config{Names: []string{"example.com"}}, s, upstream{g}, zap.NewNop(), nil)
			if err != nil {
				b.Fatal(err)
			}
			defer p.Close()
			server := httptest.NewServer(p.Registry(""))
			defer server.Close()
			url := server.URL + "/v2/app/img/blobs/" + blob.FromBytes(data).String()
			buf := make([]byte, 1<<20)
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				resp, err := http.Get(url)
				if err != nil {
					b.Fatal(err)
				}
				n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, buf)
				if err != nil || n != int64(len(data)) {
					b.Fatal(n, err)
				}
				resp.Body.Close()
			}
			http.DefaultClient.CloseIdleConnections()
		})
	}
}

func (shelf) Keep(origin.Ref, blob.Digest, int64) io.WriteCloser { return nil }
func (shelf) Served(origin.Ref, blob.Digest) bool                { return true }
func (shelf) Serves(origin.Ref, blob.Digest)                     {}
