package sim

import (
	"testing"
	"time"
)

func TestFlash(t *testing.T) {
	for _, v := range []Scenario{{Warm: true, Latency: -1}, {Warm: true}, {Latency: -1}, {}} {
		for _, c := range []struct{ n, p int }{{32, 256}, {64, 64}, {1000, 256}} {
			worst, sum := 0.0, 0.0
			canc, sr := 0, 0.0
			for seed := uint64(1); seed <= 3; seed++ {

				start := time.Now()
				v.Random, v.Nodes, v.Blobs, v.Rate, v.Core.LeaseRate = seed, c.n, []Blob{{Pieces: c.p}}, 12.5e6, 1<<30
				r, err := Run(v, func() int64 { return time.Now().UnixNano() })
				if err != nil {
					t.Fatal(err)
				}
				worst = max(worst, r.MakespanRatio)
				sum += r.MakespanRatio
				canc, sr = r.Cancels, r.SeedRatio
				_ = start
			}
			t.Logf("lat %d noending %v %dx%d mean %.4f worst %.4f cancels %d seed %.3f", v.Latency, v.NoEnding, c.n, c.p, sum/3, worst, canc, sr)
		}
	}
}
