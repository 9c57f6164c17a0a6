package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/damselfly-p2p/damselfly/e2e/cluster"
)

const (
	// manifestClients ask at once, each on a connection of its own.
	manifestClients = 100
	// manifestPause is how often each asks where the node is not to be full.
	manifestPause = 100 * time.Millisecond
	// manifestAsks is how often each client asks in a round.
	manifestAsks   = 20
	manifestRounds = 5
)

// latency is how long first bytes took.
type latency struct {
	Requests int     `json:"requests"`
	P50      float64 `json:"p50_ms"`
	P99      float64 `json:"p99_ms"`
	Rate     float64 `json:"requests_per_s"`
}

// firstBytes has every client ask for address so many times, once every so often, or
// again at once where every is 0.
func firstBytes(ctx context.Context, address string, every time.Duration) (latency, error) {
	took := make([][]time.Duration, manifestClients)
	start := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	for i := range took {
		g.Go(func() (err error) {
			// Not all in the same moment, which would measure their queue.
			took[i], err = askOften(ctx, address, every, every*time.Duration(i)/manifestClients)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return latency{}, err
	}
	all := slices.Concat(took...)
	slices.Sort(all)
	at := func(share float64) float64 { return all[int(share*float64(len(all)-1))].Seconds() * 1e3 }
	return latency{Requests: len(all), P50: at(0.5), P99: at(0.99), Rate: float64(len(all)) / time.Since(start).Seconds()}, nil
}

func askOften(ctx context.Context, address string, every, after time.Duration) (took []time.Duration, err error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	text := fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\nAccept: %s\r\n\r\n", u.RequestURI(), u.Host, ociManifest)
	in := bufio.NewReader(conn)
	timer := time.NewTimer(after)
	defer timer.Stop()
	for i := range manifestAsks + 1 {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		timer.Reset(every)
		start := time.Now()
		if _, err := io.WriteString(conn, text); err != nil {
			return nil, err
		}
		if _, err := in.Peek(1); err != nil {
			return nil, err
		}
		if i > 0 { // the first one waits for the connection to be accepted
			took = append(took, time.Since(start))
		}
		if err := drain(in); err != nil {
			return nil, err
		}
	}
	return took, nil
}

func drain(in *bufio.Reader) error {
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("manifest: %s", resp.Status)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return errors.Join(err, resp.Body.Close())
}

// The ways in which manifests are asked for.
const (
	byDigest  = "by_digest"
	byTag     = "by_tag"
	withRush  = "by_digest_without_pause"
	withPlain = "plain_net_http" // as many bytes from a server that does nothing else
)

// manifests measures how soon a node begins to answer for a manifest that it has.
func (b *bench) manifests(ctx context.Context, r *report, f *far, node *cluster.Member) error {
	if !b.wants(rowManifest) {
		return nil
	}
	if err := os.WriteFile(filepath.Join(b.dir, "manifest"), b.origin.manifest, 0o600); err != nil {
		return err
	}
	all := map[string][]latency{}
	for range manifestRounds {
		for _, way := range []struct {
			name, address string
			every         time.Duration
		}{
			{withPlain, "http://" + f.Files + "/manifest", manifestPause},
			{byDigest, through(node, "manifests/"+b.origin.manifestDigest()), manifestPause},
			{byTag, through(node, "manifests/v1"), manifestPause},
			{withRush, through(node, "manifests/"+b.origin.manifestDigest()), 0},
		} {
			if err := get(ctx, http.DefaultClient, way.address, int64(len(b.origin.manifest))); err != nil {
				return err
			}
			took, err := firstBytes(ctx, way.address, way.every)
			if err != nil {
				return fmt.Errorf("manifest %s: %w\n%s", way.name, err, node.Log(10))
			}
			all[way.name] = append(all[way.name], took)
		}
	}
	for name, rounds := range all {
		r.Manifest[name] = medianOf(rounds)
	}
	return nil
}

// medianOf is the median of each figure.
func medianOf(rounds []latency) (m latency) {
	of := func(value func(latency) float64) float64 {
		var all []float64
		for _, l := range rounds {
			all = append(all, value(l))
		}
		slices.Sort(all)
		return median(all)
	}
	for _, l := range rounds {
		m.Requests += l.Requests
	}
	m.P50 = of(func(l latency) float64 { return l.P50 })
	m.P99 = of(func(l latency) float64 { return l.P99 })
	m.Rate = of(func(l latency) float64 { return l.Rate })
	return m
}
