package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/damselfly-p2p/damselfly/e2e"
	"github.com/damselfly-p2p/damselfly/e2e/cluster"
	"github.com/damselfly-p2p/damselfly/e2e/fabric"
	"github.com/damselfly-p2p/damselfly/e2e/process"
)

// direct has every node read the origin itself.
func direct() side {
	return side{
		name: "direct", what: "every node pulls from the origin itself, without Damselfly",
		measure: func(ctx context.Context, w *world) (Side, error) { return w.pullFrom(ctx, w.origin.URL) },
	}
}

// cache has every node read an nginx between them and the origin, which keeps what it
// has read.
func cache() side {
	return side{
		name: "cache", what: "every node pulls through one nginx (proxy_cache with proxy_cache_lock), behind a link like a seed's",
		prepare: func(ctx context.Context, root string) error {
			_, err := e2e.PrepareNginx(ctx, root)
			return err
		},
		measure: pullThroughNginx,
	}
}

func pullThroughNginx(ctx context.Context, w *world) (Side, error) {
	root, err := repository(ctx)
	if err != nil {
		return Side{}, err
	}
	program, err := e2e.PrepareNginx(ctx, root)
	if err != nil {
		return Side{}, err
	}
	port, err := w.fabric.Add("cache", fabric.Link{Up: w.seedRate, Down: w.seedRate})
	if err != nil {
		return Side{}, err
	}
	dir := filepath.Join(w.dir, "cache")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Side{}, err
	}
	file, listen := filepath.Join(dir, "nginx.conf"), net.JoinHostPort(port.Addr().String(), "5000")
	if err := os.WriteFile(file, []byte(nginxConfig(dir, listen, w.origin.URL, w.origin.CAFile)), 0o644); err != nil {
		return Side{}, err
	}
	p, err := process.Start(process.Spec{
		Name: "nginx", Path: program, Args: []string{"-p", dir, "-e", "stderr", "-c", file}, Dir: dir, Netns: port.Path(),
		// A namespace of processes of its own: nginx's workers outlive a master that is
		// killed.
		Mounts: []string{":"},
	})
	if err != nil {
		return Side{}, err
	}
	defer p.Kill()
	base := "http://" + listen
	starting, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	c := w.client("", port, base, "").http
	defer c.CloseIdleConnections()
	if err := p.Ready(starting, process.AnswersBy(c, base+nginxReady)); err != nil {
		return Side{}, err
	}
	return w.pullFrom(ctx, base)
}

// nginxReady is a path that nginx answers by itself.
const nginxReady = "/ready"

// nginxConfig is that of a cache which reads each blob and manifest from the origin
// once: who asks for what it is reading waits as long as that takes. By nginx's own
// settings they would give up waiting after 5 s, and all read the origin.
func nginxConfig(dir, listen, origin, caFile string) string {
	return fmt.Sprintf(`daemon off;
user root;
worker_processes auto;
pid %[1]q;
error_log stderr warn;
events { worker_connections 4096; }
http {
	access_log off;
	sendfile on;
	tcp_nopush on;
	client_body_temp_path %[2]q;
	proxy_temp_path %[3]q;
	fastcgi_temp_path %[4]q;
	uwsgi_temp_path %[5]q;
	scgi_temp_path %[6]q;
	proxy_cache_path %[7]q levels=1:2 keys_zone=blobs:10m inactive=1d use_temp_path=off;
	server {
		listen %[8]s;
		location = %[9]s { return 204; }
		location / {
			proxy_pass %[10]s;
			proxy_ssl_trusted_certificate %[11]q;
			proxy_ssl_verify on;
			proxy_ssl_name localhost; # nginx knows no certificates of addresses
			proxy_ssl_session_reuse on;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_read_timeout 1h;
			proxy_cache blobs;
			proxy_cache_valid 200 1d;
			proxy_cache_lock on;
			proxy_cache_lock_timeout 1h;
			proxy_cache_lock_age 1h;
		}
	}
}
`, filepath.Join(dir, "pid"), filepath.Join(dir, "body"), filepath.Join(dir, "proxy"), filepath.Join(dir, "fastcgi"),
		filepath.Join(dir, "uwsgi"), filepath.Join(dir, "scgi"), filepath.Join(dir, "files"), listen, nginxReady, origin, caFile)
}

// prepareSides makes the machine ready for the other ways of pulling that the options
// ask for.
func (o options) prepareSides(ctx context.Context) error {
	for _, name := range o.With {
		s, _ := findSide(name)
		if s.prepare == nil {
			continue
		}
		root, err := repository(ctx)
		if err != nil {
			return err
		}
		if err := s.prepare(ctx, root); err != nil {
			return fmt.Errorf("--with %s: %w", name, err)
		}
	}
	return nil
}

// others measures the other ways of pulling that the options ask for, one after
// another.
func (w *world) others(ctx context.Context) (map[string]Side, error) {
	out := map[string]Side{}
	for _, name := range w.With {
		s, _ := findSide(name)
		w.say("now %s: %s", name, s.what)
		got, err := s.measure(ctx, w)
		if err != nil {
			return nil, fmt.Errorf("--with %s: %w", name, err)
		}
		out[name] = got
	}
	return out, nil
}

// pullFrom has all nodes pull all images at once from a registry, and returns what that
// came to. The pulls are not among the world's.
func (w *world) pullFrom(ctx context.Context, base string) (Side, error) {
	kept := w.swapPulls(nil)
	began := w.began
	defer func() {
		w.swapPulls(kept)
		w.began = began
	}()
	w.origin.Reset()
	w.began = time.Now()
	limited, cancel := context.WithTimeout(ctx, w.sideTimeout())
	defer cancel()
	w.each(w.cluster.Nodes, func(_ int, m *cluster.Member) {
		var images sync.WaitGroup
		for _, img := range w.images {
			images.Go(func() { w.pull(limited, w.client(m.Name, w.port(m.Name), base, ""), img) })
		}
		images.Wait()
	})
	return w.side(), ctx.Err()
}

func (w *world) swapPulls(with []*pull) []*pull {
	w.mu.Lock()
	defer w.mu.Unlock()
	was := w.pulls
	w.pulls = with
	return was
}

// sideTimeout is for what all nodes get over one link, one after another at worst.
func (w *world) sideTimeout() time.Duration {
	if w.Timeout > 0 {
		return w.Timeout
	}
	return time.Duration(2*w.Nodes*max(w.Seeds, 1))*w.bound() + time.Minute
}

// side is what the world's pulls and the origin's counters say.
func (w *world) side() Side {
	counts := w.origin.Counts()
	s := Side{OriginRequests: counts.Requests}
	for _, n := range counts.BlobBytes {
		s.OriginBytes += n
	}
	s.OriginRatio = over(s.OriginBytes, w.uniqueBytes())
	for _, p := range w.begun() {
		if p.err != nil {
			s.Failed++
		}
	}
	var took []time.Duration
	for _, m := range w.cluster.Nodes {
		if d := w.nodeTime(m.Name); d > 0 {
			took = append(took, d)
		}
	}
	if len(took) > 0 {
		s.SecondsMax, s.SecondsP50 = slices.Max(took).Seconds(), median(took).Seconds()
		s.Ratio = over(s.SecondsMax, w.bound().Seconds())
	}
	return s
}

// printSides writes Damselfly and the other ways of pulling below each other, to a
// tabwriter.
func (r Result) printSides(out io.Writer) {
	if len(r.With) == 0 {
		return
	}
	fmt.Fprintln(out, "\nby\tratio\tseconds max\tp50\torigin MiB\torigin ratio\torigin requests\tfailed")
	row := func(name string, s Side) {
		fmt.Fprintf(out, "%s\t%.3f\t%.2f\t%.2f\t%.1f\t%.3f\t%d\t%d\n", name, s.Ratio, s.SecondsMax, s.SecondsP50,
			float64(s.OriginBytes)/(1<<20), s.OriginRatio, s.OriginRequests, s.Failed)
	}
	row("damselfly", Side{
		SecondsMax: r.SecondsMax, SecondsP50: r.SecondsP50, Ratio: r.Ratio, OriginBytes: r.OriginBytes,
		OriginRatio: r.OriginRatio, OriginRequests: r.OriginRequests, Failed: r.Failed,
	})
	for _, name := range slices.Sorted(maps.Keys(r.With)) {
		row(name, r.With[name])
	}
}
