package e2e

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"github.com/damselfly-p2p/damselfly/e2e/client"
	"github.com/damselfly-p2p/damselfly/e2e/cluster"
	"github.com/damselfly-p2p/damselfly/e2e/origin"
	"github.com/damselfly-p2p/damselfly/e2e/puller"
	"github.com/damselfly-p2p/damselfly/e2e/sample"
)

// BenchmarkColdPull pulls new images by turns straight from the origin and
// through one cold node, with an origin as fast as this machine and with one
// behind a line of 1 Gbit/s. It reports the median of the pairs' ratios: 1.00 is
// as fast as without Damselfly.
//
//	go test ./e2e -run '^$' -bench ColdPull -benchtime 15x
func BenchmarkColdPull(b *testing.B) {
	for _, row := range []struct {
		name  string
		rate  int // bytes a second, 0 for no bound
		alone bool
	}{
		{"loopback/alone", 0, true},
		{"loopback/with a seed", 0, false},
		{"1 Gbit per s/alone", 117_000_000, true},
		{"1 Gbit per s/with a seed", 117_000_000, false},
	} {
		b.Run(row.name, func(b *testing.B) {
			o := startOrigin(b, origin.Token, false)
			if row.rate > 0 {
				o.Inject(origin.Rule{Fault: origin.Slow(origin.Rate(row.rate))})
			}
			if row.alone {
				coldPull(b, o, startAlone(b, o).Nodes[0])
			} else {
				coldPull(b, o, startCluster(b, o, 1, 1).Nodes[0])
			}
		})
	}
}

// BenchmarkColdPullContainerd is BenchmarkColdPull with containerd as the client,
// which verifies, stores and unpacks what it pulls, and with an origin as fast as
// this machine.
func BenchmarkColdPullContainerd(b *testing.B) {
	ctr := client.All(programs(b).Programs.Programs)[0]
	for _, row := range []struct {
		name  string
		seeds int
	}{{"alone", 0}, {"with a seed", 1}} {
		b.Run(row.name, func(b *testing.B) {
			o := startOrigin(b, origin.Token, false)
			c := startAlone
			if row.seeds > 0 {
				c = func(b testing.TB, o *origin.Origin) *cluster.Cluster { return startCluster(b, o, row.seeds, 1) }
			}
			pulls := 0
			pull := func(mirror, repository string) float64 {
				pulls++
				arrived, err := ctr.Pull(b.Context(), client.Pull{
					Dir: filepath.Join(directory(b), fmt.Sprint(pulls)), Node: client.Node{Mirror: mirror},
					Registry: registry, Repository: repository, Tag: "v1", CAFile: o.CAFile, User: reader(),
				})
				must(b, err)
				return arrived.Took.Seconds()
			}
			node := c(b, o).Nodes[0]
			compare(b, o,
				func(repository string) float64 { return pull(o.URL, repository) },
				func(repository string) float64 { return pull(node.Mirror, repository) })
		})
	}
}

func coldPull(b *testing.B, o *origin.Origin, node *cluster.Member) {
	pull := func(p *puller.Puller, repository string) float64 {
		result, err := p.Pull(b.Context(), repository, "v1")
		must(b, err)
		return result.Elapsed.Seconds()
	}
	compare(b, o,
		func(repository string) float64 { return pull(straight(o), repository) },
		func(repository string) float64 { return pull(through(o, node), repository) })
}

// compare pulls b.N new images straight and through a node, by turns, and reports
// the medians.
func compare(b *testing.B, o *origin.Origin, straight, through func(repository string) float64) {
	var direct, cold, ratios []float64
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		repository := fmt.Sprintf("app/bench%d-%d", i, b.N)
		push(b, o, repository, sample.Large(), sample.OCI)
		b.StartTimer()
		// By turns, so that neither always finds the registry's files warmer.
		var d, c float64
		if i%2 == 0 {
			d = straight(repository)
			c = through(repository)
		} else {
			c = through(repository)
			d = straight(repository)
		}
		direct, cold, ratios = append(direct, d), append(cold, c), append(ratios, c/d)
	}
	b.ReportMetric(median(direct), "direct-s")
	b.ReportMetric(median(cold), "cold-s")
	b.ReportMetric(median(ratios), "x-direct")
}

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}
