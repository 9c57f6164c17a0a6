package e2e

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/damselfly-p2p/damselfly/e2e/client"
	"github.com/damselfly-p2p/damselfly/e2e/cluster"
	"github.com/damselfly-p2p/damselfly/e2e/direct"
	"github.com/damselfly-p2p/damselfly/e2e/origin"
	"github.com/damselfly-p2p/damselfly/e2e/puller"
	"github.com/damselfly-p2p/damselfly/e2e/sample"
)

// registry is the registry's name in image names. Nothing resolves it.
const registry = "registry.test"

// Settings of a run, as environment variables.
const (
	// envRace builds Damselfly with the race detector.
	envRace = "DAMSELFLY_E2E_RACE"
	// envDirect lets clients pull through a plain proxy instead of Damselfly, which
	// shows whether clients and origins themselves are set up well.
	envDirect = "DAMSELFLY_E2E_DIRECT"
	// envLog is the log level of Damselfly's processes.
	envLog = "DAMSELFLY_E2E_LOG"
)

// lab is what the machine and the repository give to every test.
type lab struct {
	Programs
	bin string // the directory of scheduler, seed and dfget
}

// prepare makes the machine ready once.
var prepare = sync.OnceValues(func() (lab, error) {
	ctx := context.Background()
	root, err := filepath.Abs("..")
	if err != nil {
		return lab{}, err
	}
	l := lab{}
	if l.Programs, err = Prepare(ctx, root); err == nil && os.Getenv(envDirect) == "" {
		l.bin, err = Build(ctx, root, os.Getenv(envRace) != "")
	}
	return l, err
})

func TestMain(m *testing.M) {
	flag.Parse()
	if _, err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func programs(t testing.TB) lab {
	t.Helper()
	l, err := prepare()
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// directory returns a new directory with a short path, as sockets need it.
func directory(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "dfe2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// deadline bounds a test. It is far above what a test takes.
func deadline(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// startOrigin starts a registry that speaks HTTPS with HTTP/2 under a CA of its own.
func startOrigin(t testing.TB, kind origin.Kind, bucket bool) *origin.Origin {
	t.Helper()
	return startRegistry(t, origin.Config{Kind: kind, Bucket: bucket})
}

func startRegistry(t testing.TB, cfg origin.Config) *origin.Origin {
	t.Helper()
	p := programs(t)
	cfg.Dir, cfg.Registry, cfg.Gateway = directory(t), p.Registry, p.Gateway
	o, err := origin.Start(deadline(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.Close)
	return o
}

// hosts are the entries of a node's configuration for an origin that is both the
// registry and Docker Hub. Its CA is that of its token realm and its bucket, too.
func hosts(o *origin.Origin) []cluster.Host {
	return []cluster.Host{{Name: registry, Endpoint: o.URL, CAFile: o.CAFile}, {Name: "docker.io", Endpoint: o.URL, CAFile: o.CAFile}}
}

// startCluster starts a cluster for which the origin is both the registry and
// Docker Hub. When the test ends every process must end well.
func startCluster(t testing.TB, o *origin.Origin, seeds, nodes int) *cluster.Cluster {
	t.Helper()
	return startConfig(t, o, cluster.Config{Seeds: seeds, Nodes: nodes})
}

// startAlone starts one node that works by itself.
func startAlone(t testing.TB, o *origin.Origin) *cluster.Cluster {
	t.Helper()
	return startConfig(t, o, cluster.Config{Nodes: 1, Alone: true})
}

func startConfig(t testing.TB, o *origin.Origin, cfg cluster.Config) *cluster.Cluster {
	t.Helper()
	cfg.Dir, cfg.Bin, cfg.LogLevel = directory(t), programs(t).bin, os.Getenv(envLog)
	if cfg.Hosts == nil {
		cfg.Hosts = hosts(o)
	}
	cfg.Intercept = []string{registry}
	c, err := cluster.Start(deadline(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("logs:\n%s", c.Logs(60))
		}
	})
	return c
}

// startNode returns where clients reach a node of a cluster with one seed.
func startNode(t testing.TB, o *origin.Origin) client.Node {
	t.Helper()
	if os.Getenv(envDirect) != "" {
		n, err := direct.Start(directory(t), registry, o.URL, o.Transport())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(n.Close)
		return client.Node{Mirror: n.Mirror, Hub: n.Mirror, Proxy: n.Proxy, CAFile: n.CAFile}
	}
	m := startCluster(t, o, 1, 1).Nodes[0]
	return client.Node{Mirror: m.Mirror, Hub: m.Hub, Proxy: m.Proxy, CAFile: m.CAFile}
}

// push makes an image that no other test uses, and pushes it.
func push(t testing.TB, o *origin.Origin, repository string, layers []int64, format sample.Format) *sample.Image {
	t.Helper()
	img, err := sample.New(t.Name()+repository, layers, format)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Push(t.Context(), img, repository, "v1"); err != nil {
		t.Fatal(err)
	}
	return img
}

// name makes a test's name fit for a repository.
func name(t testing.TB) string {
	return strings.NewReplacer("/", "-", ".", "", "_", "-").Replace(strings.ToLower(t.Name()))
}

// through is a puller that uses a node's mirror, as the reader of the origin.
func through(o *origin.Origin, m *cluster.Member) *puller.Puller {
	return &puller.Puller{Base: m.Mirror, Registry: registry, Authorize: o.As(origin.Reader)}
}

// reader is how clients name the origin's reader.
func reader() client.User { return client.User{Name: origin.Reader, Password: origin.Password} }

// straight is a puller that uses the origin itself, as its reader.
func straight(o *origin.Origin) *puller.Puller {
	return &puller.Puller{Base: o.URL, Client: o.Client, Authorize: o.As(origin.Reader)}
}

// pullAll pulls an image through every node at once and checks what arrived.
func pullAll(t testing.TB, o *origin.Origin, nodes []*cluster.Member, img *sample.Image, repository string) {
	t.Helper()
	if err := pullNodes(deadline(t), o, nodes, img, repository); err != nil {
		t.Fatal(err)
	}
}

// pullRightOrCutOff pulls a layer through every node at once. What a client gets is right,
// or cut off: the node noticed in time, or the end of the body is missing.
func pullRightOrCutOff(t testing.TB, o *origin.Origin, nodes []*cluster.Member, repository string, layer sample.Blob) []error {
	t.Helper()
	errs := make([]error, len(nodes))
	var pulls sync.WaitGroup
	for i, n := range nodes {
		pulls.Go(func() { errs[i] = through(o, n).Blob(deadline(t), repository, layer.Digest, layer.Size()) })
	}
	pulls.Wait()
	for i, err := range errs {
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && statusOf(err) == 0 {
			t.Errorf("%s handed the layer out whole with wrong bytes: %v", nodes[i].Name, err)
		}
	}
	return errs
}

func pullNodes(ctx context.Context, o *origin.Origin, nodes []*cluster.Member, img *sample.Image, repository string) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, n := range nodes {
		group.Go(func() error {
			got, err := through(o, n).Pull(ctx, repository, "v1")
			if err != nil {
				return fmt.Errorf("%s: %w", n.Name, err)
			}
			if got.Index != img.Index.Digest || got.Manifest != img.Native.Digest {
				return fmt.Errorf("%s: pulled index %s and manifest %s, want %s and %s",
					n.Name, got.Index, got.Manifest, img.Index.Digest, img.Native.Digest)
			}
			return nil
		})
	}
	return group.Wait()
}

// largest is the image's largest layer.
func largest(img *sample.Image) sample.Blob {
	return slices.MaxFunc(img.Native.Layers, func(a, b sample.Blob) int { return cmp.Compare(a.Size(), b.Size()) })
}

// layerDigests lists the digests of an image's layers for this machine.
func layerDigests(img *sample.Image) []string {
	var out []string
	for _, l := range img.Native.Layers {
		out = append(out, l.Digest)
	}
	return out
}

// checkOriginPaidOnce checks that each layer was read once from the origin, to
// the byte, and each manifest asked for once.
func checkOriginPaidOnce(t testing.TB, o *origin.Origin, img *sample.Image) {
	t.Helper()
	counts := o.Counts()
	for i, l := range img.Native.Layers {
		if got := counts.BlobBytes[l.Digest]; got != l.Size() {
			t.Errorf("layer %d: the origin sent %d bytes, want its %d once (%d requests)", i, got, l.Size(), counts.BlobGets[l.Digest])
		}
	}
	for what, d := range map[string]string{"index": img.Index.Digest, "manifest": img.Native.Digest} {
		if got := counts.ManifestGets[d]; got != 1 {
			t.Errorf("the %s was read %d times from the origin, want once", what, got)
		}
	}
}

// eventually calls check until it returns nil, for a while.
func eventually(t testing.TB, check func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check(ctx)
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("not in time: %v", err)
		}
	}
}

// statusOf is the status code that a puller's error tells, 0 when it tells none.
func statusOf(err error) int {
	var status *puller.StatusError
	if errors.As(err, &status) {
		return status.Code
	}
	return 0
}
