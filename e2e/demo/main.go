// Command demo shows what Damselfly does, on one machine and without root: it
// starts a registry, a scheduler, a seed and four nodes as real processes on
// loopback, pulls one image through all nodes at once, and counts what the
// registry had to send.
//
// KEEP=1 in the environment leaves everything running until Ctrl-C.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"golang.org/x/sync/errgroup"

	"github.com/damselfly-p2p/damselfly/e2e/cluster"
	"github.com/damselfly-p2p/damselfly/e2e/origin"
	"github.com/damselfly-p2p/damselfly/e2e/puller"
	"github.com/damselfly-p2p/damselfly/e2e/sample"
)

const (
	registryName = "registry.test"
	repository   = "demo/app"
	tag          = "v1"
)

func main() {
	bin := flag.String("bin", "bin", "directory of the programs scheduler, seed and dfget")
	nodes := flag.Int("nodes", 4, "how many nodes pull at once")
	keep := flag.Bool("keep", os.Getenv("KEEP") != "", "leave everything running until Ctrl-C")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *bin, *nodes, *keep, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, bin string, nodes int, keep bool, out io.Writer) (err error) {
	bin, err = filepath.Abs(bin)
	if err != nil {
		return err
	}
	for _, program := range []string{"scheduler", "seed", "dfget"} {
		if _, err := os.Stat(filepath.Join(bin, program)); err != nil {
			return fmt.Errorf("%w; build the programs first (make build) or name their directory with -bin", err)
		}
	}
	dir, err := os.MkdirTemp("", "damselfly-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	front, ca, img, err := startRegistry(ctx, dir)
	if err != nil {
		return err
	}
	defer front.Close()
	fmt.Fprintf(out, "registry  %s (known as %s, with TLS, HTTP/2 and a password), image %s:%s: %d layers, %s\n",
		front.URL, registryName, repository, tag, len(img.Native.Layers), size(img.Native.LayerBytes()))

	c, err := cluster.Start(ctx, cluster.Config{
		Dir: dir, Bin: bin, Seeds: 1, Nodes: nodes,
		Hosts: []cluster.Host{{Name: registryName, Endpoint: front.URL, CAFile: ca}},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	fmt.Fprintf(out, "cluster   1 scheduler, 1 seed, %d nodes; pulling through all nodes at once\n\n", nodes)

	results, err := pull(ctx, c, img)
	if err != nil {
		return fmt.Errorf("%w\n%s", err, c.Logs(10))
	}
	if err := report(ctx, out, c, results, img); err != nil {
		return err
	}
	ratio := printRatio(out, front, img)
	if keep {
		explain(out, c, dir)
		<-ctx.Done()
	}
	if ratio > 1.02 {
		return fmt.Errorf("the origin was asked for more than its layers once\n%s", c.Logs(10))
	}
	return nil
}

// startRegistry starts a registry in this process, with an image of two
// architectures in it. It speaks HTTPS with HTTP/2 under a CA of its own, whose file it
// returns, and wants a password.
func startRegistry(ctx context.Context, dir string) (*origin.Front, string, *sample.Image, error) {
	authority, err := origin.NewAuthority(dir)
	if err != nil {
		return nil, "", nil, err
	}
	img, err := sample.New("demo", sample.Large(), sample.OCI)
	if err != nil {
		return nil, "", nil, err
	}
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	if err := fill(ctx, handler, img); err != nil {
		return nil, "", nil, err
	}
	front, err := origin.NewHandlerFront(origin.RequirePassword(handler), origin.NewCounter(),
		origin.Wire{Authority: authority, Names: []string{registryName}})
	return front, authority.CAFile, img, err
}

// fill pushes the image to a registry behind its back: what a push costs is not shown.
func fill(ctx context.Context, handler http.Handler, img *sample.Image) error {
	back, err := origin.NewHandlerFront(handler, origin.NewCounter(), origin.Wire{})
	if err != nil {
		return err
	}
	defer back.Close()
	return img.Push(ctx, back.URL, repository, tag, "")
}

// pull pulls the image through every node at once.
func pull(ctx context.Context, c *cluster.Cluster, img *sample.Image) ([]puller.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	results := make([]puller.Result, len(c.Nodes))
	group, ctx := errgroup.WithContext(ctx)
	for i, n := range c.Nodes {
		group.Go(func() error {
			p := puller.Puller{Base: n.Mirror, Registry: registryName, Authorization: origin.BasicAuth(origin.Reader)}
			result, err := p.Pull(ctx, repository, tag)
			if err != nil {
				return fmt.Errorf("%s: %w", n.Name, err)
			}
			if result.Index != img.Index.Digest {
				return fmt.Errorf("%s: pulled %s, want %s", n.Name, result.Index, img.Index.Digest)
			}
			results[i] = result
			return nil
		})
	}
	return results, group.Wait()
}

// report prints where each node had its bytes from.
func report(ctx context.Context, out io.Writer, c *cluster.Cluster, results []puller.Result, img *sample.Image) error {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "node\tseconds\tfrom origin\tfrom seed\tfrom peers\t")
	for i, n := range c.Nodes {
		pulled, err := settled(ctx, n, img.Native.LayerBytes())
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "%s\t%.2f\t%s\t%s\t%s\t\n", n.Name, results[i].Elapsed.Seconds(),
			size(pulled[cluster.FromOrigin]), size(pulled[cluster.FromSeed]), size(pulled[cluster.FromPeer]))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "\nevery digest verified on every node: %s\n", img.Index.Digest)
	return err
}

// settled is a node's numbers once they add up to want bytes, or as they are
// after a second: a node counts a run of pieces when the run is over, which may be
// after its client has them.
func settled(ctx context.Context, n *cluster.Member, want int64) (map[string]int64, error) {
	for range 20 {
		pulled, err := n.Pulled(ctx)
		if err != nil || cluster.Sum(pulled) >= want {
			return pulled, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	return n.Pulled(ctx)
}

// printRatio prints how often the origin sent the image's layers.
func printRatio(out io.Writer, front *origin.Front, img *sample.Image) float64 {
	var digests []string
	for _, l := range img.Native.Layers {
		digests = append(digests, l.Digest)
	}
	sent, want := front.Counts().Bytes(digests...), img.Native.LayerBytes()
	ratio := float64(sent) / float64(want)
	fmt.Fprintf(out, "the registry sent %s of layers for an image of %s\norigin ratio: %.2f\n", size(sent), size(want), ratio)
	return ratio
}

// explain tells how to pull from the running nodes.
func explain(out io.Writer, c *cluster.Cluster, dir string) {
	fmt.Fprintf(out, "\nStill running; Ctrl-C ends it. Configurations and logs are in %s.\nPull through a node yourself:\n", dir)
	for i, n := range c.Nodes {
		image := strings.TrimPrefix(n.Mirror, "http://") + "/" + registryName + "/" + repository + ":" + tag
		user := origin.Reader + ":" + origin.Password
		// podman, skopeo and docker send no password to a mirror of every registry: it has
		// no challenge for their ping.
		command := []string{
			"ctr images pull --plain-http --user " + user + " " + image,
			fmt.Sprintf("curl -u %s '%s/v2/%s/manifests/%s?ns=%s'", user, n.Mirror, repository, tag, registryName),
		}[i%2]
		fmt.Fprintf(out, "  %s: %s\n", n.Name, command)
	}
	fmt.Fprintf(out, "Numbers of a node: curl http://%s/metrics\n", c.Nodes[0].Ops)
}

// size prints a number of bytes for people.
func size(n int64) string {
	switch {
	case n >= 1e6:
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	case n >= 1e3:
		return fmt.Sprintf("%.1f kB", float64(n)/1e3)
	default:
		return fmt.Sprintf("%d B", n)
	}
}
