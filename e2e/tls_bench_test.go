package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/damselfly-p2p/damselfly/e2e/cluster"
	"github.com/damselfly-p2p/damselfly/e2e/origin"
	"github.com/damselfly-p2p/damselfly/e2e/puller"
	"github.com/damselfly-p2p/damselfly/e2e/sample"
)

// BenchmarkBlobProtocol reads new blobs of 128 MiB by turns from a registry that speaks
// HTTP/1.1 alone and from one that speaks HTTP/2 alone, both with TLS, through one cold
// node. It reports the medians of MB/s and of the node's CPU seconds per GB, and of the
// pairs' ratios: above 1 HTTP/2 takes longer, or costs more, than HTTP/1.1.
//
//	go test ./e2e -run '^$' -bench BlobProtocol -benchtime 15x
func BenchmarkBlobProtocol(b *testing.B) {
	authority, err := origin.NewAuthority(directory(b))
	must(b, err)
	kept := &oneBlob{}
	cfg := cluster.Config{Dir: directory(b), Bin: programs(b).bin, Nodes: 1, Alone: true}
	speak := func(name, protocol string) protocolSide {
		front, err := origin.NewHandlerFront(kept, origin.NewCounter(), origin.Wire{Authority: authority, Alter: only(protocol)})
		must(b, err)
		b.Cleanup(front.Close)
		cfg.Hosts = append(cfg.Hosts, cluster.Host{Name: name, Endpoint: front.URL, CAFile: authority.CAFile})
		return protocolSide{registry: name}
	}
	one, two := speak("h1.test", "http/1.1"), speak("h2.test", "h2")
	c, err := cluster.Start(b.Context(), cfg)
	must(b, err)
	b.Cleanup(func() { must(b, c.Close()) })
	for i := 0; b.Loop(); i++ {
		if i%2 == 0 {
			one.read(b, c.Nodes[0], kept)
			two.read(b, c.Nodes[0], kept)
		} else {
			two.read(b, c.Nodes[0], kept)
			one.read(b, c.Nodes[0], kept)
		}
	}
	b.ReportMetric(protocolSize/1e6/median(one.seconds), "h1-MB/s")
	b.ReportMetric(protocolSize/1e6/median(two.seconds), "h2-MB/s")
	b.ReportMetric(median(one.cpu)/(protocolSize/1e9), "h1-cpu-s/GB")
	b.ReportMetric(median(two.cpu)/(protocolSize/1e9), "h2-cpu-s/GB")
	b.ReportMetric(median(ratios(two.seconds, one.seconds)), "h2/h1-time")
	b.ReportMetric(median(ratios(two.cpu, one.cpu)), "h2/h1-cpu")
}

const protocolSize = 128 << 20

// protocolSide is a registry and what its reads took and cost the node.
type protocolSide struct {
	registry     string
	seconds, cpu []float64
}

// read reads a new blob through a node.
func (s *protocolSide) read(b *testing.B, node *cluster.Member, kept *oneBlob) {
	b.StopTimer()
	blob := kept.renew()
	before := cpuSeconds(b, node)
	b.StartTimer()
	start := time.Now()
	p := puller.Puller{Base: node.Mirror, Registry: s.registry}
	must(b, p.Blob(b.Context(), "app/img", blob.Digest, blob.Size()))
	s.seconds = append(s.seconds, time.Since(start).Seconds())
	s.cpu = append(s.cpu, cpuSeconds(b, node)-before)
}

// cpuSeconds is what a member has used of CPU.
func cpuSeconds(b *testing.B, m *cluster.Member) float64 {
	b.Helper()
	n, err := m.Gauge(context.WithoutCancel(b.Context()), "process_cpu_seconds_total")
	must(b, err)
	return n
}

func ratios(of, over []float64) []float64 {
	out := make([]float64, len(of))
	for i := range of {
		out[i] = of[i] / over[i]
	}
	return out
}

// oneBlob is a registry that keeps one blob, from memory: it costs little CPU itself.
type oneBlob struct {
	data []byte
	n    uint64
	now  atomic.Pointer[sample.Blob]
}

// renew has the registry keep another blob. Nobody may read from it meanwhile.
func (o *oneBlob) renew() sample.Blob {
	if o.data == nil {
		o.data = make([]byte, protocolSize)
		_, _ = rand.NewChaCha8([32]byte{}).Read(o.data)
	}
	o.n++
	binary.LittleEndian.PutUint64(o.data, o.n)
	blob := sample.Blob{Digest: sample.Digest(o.data), Data: o.data}
	o.now.Store(&blob)
	return blob
}

func (o *oneBlob) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	blob := o.now.Load()
	switch {
	case r.URL.Path == "/v2/":
	case blob != nil && strings.HasSuffix(r.URL.Path, "/blobs/"+blob.Digest):
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob.Data))
	default:
		origin.Status(http.StatusNotFound)(w, r, nil)
	}
}
