package e2e

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/damselfly-p2p/damselfly/e2e/cluster"
	"github.com/damselfly-p2p/damselfly/e2e/origin"
	"github.com/damselfly-p2p/damselfly/e2e/sample"
)

// TestBadStarts starts nodes that cannot run: each ends by itself with another
// code than 0 and says what is wrong.
func TestBadStarts(t *testing.T) {
	o := startOrigin(t, origin.Token, false)
	c := startAlone(t, o)
	running := c.Nodes[0]
	for _, row := range []struct {
		name string
		like cluster.Member
		// spoil changes what was made before the start.
		spoil func(t *testing.T, m *cluster.Member)
		want  func(m *cluster.Member) []string // in the log
	}{
		{
			name: "second on one store",
			like: cluster.Member{DataDir: running.DataDir},
			want: func(*cluster.Member) []string { return []string{running.DataDir} },
		},
		{
			name: "port in use",
			like: cluster.Member{Mirror: running.Mirror},
			want: func(*cluster.Member) []string {
				return []string{strings.TrimPrefix(running.Mirror, "http://"), "in use", "--mirror-listen"}
			},
		},
		{
			name:  "no configuration file",
			spoil: func(t *testing.T, m *cluster.Member) { must(t, os.Remove(m.File)) },
			want:  func(m *cluster.Member) []string { return []string{m.File} },
		},
		{
			name: "configuration is a directory",
			spoil: func(t *testing.T, m *cluster.Member) {
				must(t, os.Remove(m.File))
				must(t, os.Mkdir(m.File, 0o755))
			},
			want: func(m *cluster.Member) []string { return []string{m.File} },
		},
		{
			name: "unknown key",
			spoil: func(t *testing.T, m *cluster.Member) {
				f, err := os.OpenFile(m.File, os.O_APPEND|os.O_WRONLY, 0)
				must(t, err)
				_, err = io.WriteString(f, "mirorr: {listen: 127.0.0.1:1}\n")
				must(t, err)
				must(t, f.Close())
			},
			want: func(m *cluster.Member) []string { return []string{m.File + ":", "mirorr", "mirror"} },
		},
		{
			name: "data directory is a file",
			like: cluster.Member{DataDir: filepath.Join(directory(t), "file")},
			spoil: func(t *testing.T, m *cluster.Member) {
				must(t, os.WriteFile(m.DataDir, nil, 0o600))
			},
			want: func(m *cluster.Member) []string { return []string{m.DataDir} },
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			like := row.like
			like.Name, like.Role = strings.ReplaceAll(row.name, " ", "-"), cluster.Node
			m, err := c.New(like)
			must(t, err)
			if row.spoil != nil {
				row.spoil(t, m)
			}
			must(t, m.Launch())
			if err := m.Wait(deadline(t)); err == nil {
				t.Error("it ended with code 0, want another")
			}
			log := m.Log(50)
			for _, want := range row.want(m) {
				if !strings.Contains(log, want) {
					t.Errorf("its last words do not tell %q:\n%s", want, log)
				}
			}
			if strings.Contains(log, "goroutine ") {
				t.Errorf("it panicked:\n%s", log)
			}
		})
	}
	// The node that was there first is not disturbed.
	img := push(t, o, "app/img", sample.Small(), sample.OCI)
	pullAll(t, o, c.Nodes, img, "app/img")
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestMalformedRequests sends a mirror what no client should: it answers with an
// error of the distribution spec and lives on, and the origin is not bothered.
func TestMalformedRequests(t *testing.T) {
	o := startOrigin(t, origin.Token, false)
	c := startAlone(t, o)
	img := push(t, o, "app/img", sample.Small(), sample.OCI)
	d := img.Native.Digest
	hex := strings.TrimPrefix(d, "sha256:")
	before := o.Counts().Requests
	for _, row := range []struct{ name, method, target string }{
		{"short digest", "GET", "/v2/app/img/blobs/sha256:abc?ns=" + registry},
		{"digest in upper case", "GET", "/v2/app/img/blobs/sha256:" + strings.ToUpper(hex) + "?ns=" + registry},
		{"digest that climbs", "GET", "/v2/app/img/blobs/sha256:..%2f..%2f" + hex + "?ns=" + registry},
		{"digest with a NUL", "GET", "/v2/app/img/blobs/sha256:" + hex[:63] + "%00?ns=" + registry},
		{"repository that climbs", "GET", "/v2/app/..%2f..%2fimg/manifests/v1?ns=" + registry},
		{"repository in upper case", "GET", "/v2/APP/img/manifests/v1?ns=" + registry},
		{"long tag", "GET", "/v2/app/img/manifests/" + strings.Repeat("a", 129) + "?ns=" + registry},
		{"tag with a blank", "GET", "/v2/app/img/manifests/v%201?ns=" + registry},
		{"two registries", "GET", "/v2/app/img/manifests/v1?ns=" + registry + "&ns=other.test"},
		{"registry with a user", "GET", "/v2/app/img/manifests/v1?ns=user@" + registry},
		{"registry with a path", "GET", "/v2/app/img/manifests/v1?ns=" + registry + "%2fother"},
		{"registry with a line end", "GET", "/v2/app/img/manifests/v1?ns=" + registry + "%0d%0aX:1"},
		{"registry at a metadata address", "GET", "/v2/app/img/manifests/v1?ns=169.254.169.254"},
		{"no such path", "GET", "/v3/"},
	} {
		t.Run(row.name, func(t *testing.T) {
			resp, body := request(t, row.method, c.Nodes[0].Mirror+row.target, nil)
			if resp.StatusCode < 400 || resp.StatusCode > 502 || resp.StatusCode == http.StatusInternalServerError {
				t.Errorf("%s %s: %s, want a refusal\n%s", row.method, row.target, resp.Status, body)
			}
			checkErrorBody(t, body)
		})
	}
	if got := o.Counts().Requests; got != before {
		t.Errorf("the origin was asked %d times for what cannot be", got-before)
	}
	pullAll(t, o, c.Nodes, img, "app/img")
}

// checkErrorBody checks that a body is an error of the distribution spec.
func checkErrorBody(t *testing.T, body []byte) {
	t.Helper()
	var answer struct {
		Errors []struct{ Code, Message string }
	}
	if err := json.Unmarshal(body, &answer); err != nil || len(answer.Errors) == 0 || answer.Errors[0].Code == "" {
		t.Errorf("not an error body of the distribution spec: %q", body)
	}
}

func request(t *testing.T, method, url string, header http.Header) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(deadline(t), method, url, nil)
	must(t, err)
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	must(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	must(t, err)
	return resp, body
}

// TestRanges asks a cold node for parts of a layer.
func TestRanges(t *testing.T) {
	o := startOrigin(t, origin.Token, false)
	c := startCluster(t, o, 1, 1)
	img := push(t, o, "app/img", sample.Medium(), sample.OCI)
	layer := largest(img)
	size := layer.Size()
	authorization, err := o.Authorization(origin.Reader, "app/img")
	must(t, err)
	url := c.Nodes[0].Mirror + "/v2/app/img/blobs/" + layer.Digest + "?ns=" + registry
	for _, row := range []struct {
		name, ask  string
		status     int
		from, till int64 // of what must come
	}{
		{"first bytes", "bytes=0-99", http.StatusPartialContent, 0, 100},
		{"amid", "bytes=10000000-10999999", http.StatusPartialContent, 10000000, 11000000},
		{"last bytes", "bytes=-4096", http.StatusPartialContent, size - 4096, size},
		{"open end", "bytes=20000000-", http.StatusPartialContent, 20000000, size},
		{"beyond the end", "bytes=99999999-", http.StatusRequestedRangeNotSatisfiable, 0, 0},
		{"end beyond the end", "bytes=20000000-99999999", http.StatusPartialContent, 20000000, size},
		{"not a range", "bytes=abc", http.StatusOK, 0, size},
		{"whole", "", http.StatusOK, 0, size},
	} {
		t.Run(row.name, func(t *testing.T) {
			header := http.Header{"Authorization": {authorization}}
			if row.ask != "" {
				header.Set("Range", row.ask)
			}
			resp, body := request(t, http.MethodGet, url, header)
			// An unusable Range may be ignored or refused (RFC 9110, 14.2).
			if row.name == "not a range" && resp.StatusCode == http.StatusRequestedRangeNotSatisfiable {
				return
			}
			if resp.StatusCode != row.status {
				t.Fatalf("Range: %s: %s, want %d", row.ask, resp.Status, row.status)
			}
			if row.status == http.StatusRequestedRangeNotSatisfiable {
				return
			}
			if want := layer.Data[row.from:row.till]; string(body) != string(want) {
				t.Errorf("Range: %s: got %d bytes, want bytes %d to %d of the layer", row.ask, len(body), row.from, row.till)
			}
		})
	}
}
