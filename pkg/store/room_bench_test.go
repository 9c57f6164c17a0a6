package store_test

import (
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/damselfly-p2p/damselfly/pkg/store"
	"github.com/damselfly-p2p/damselfly/pkg/store/storetest"
)

// BenchmarkSetAside writes blobs of 256 MiB in pieces of 256 KiB, with their room
// taken on the disk first and without: what that costs in CPU, in seconds a GB. It
// reads nothing but the process's own clock, so that the disk's speed is not in it.
func BenchmarkSetAside(b *testing.B) {
	const size, pieces = 256 << 20, 1024
	c := storetest.Random(b, 1, size)
	shuffled := rand.New(rand.NewPCG(1, 2)).Perm(pieces)
	for _, ahead := range []bool{false, true} {
		for _, sync := range []bool{false, true} {
			b.Run(fmt.Sprintf("ahead=%v/sync=%v", ahead, sync), func(b *testing.B) {
				s, err := store.OpenTapped(store.Config{Dir: b.TempDir()}, nil, func(op store.Operation, _ *[]byte, _ int64, do func() error) error {
					if op.Kind == "allocate" && !ahead {
						return nil
					}
					return do()
				})
				must(b, err)
				defer closeStore(b, s)
				b.SetBytes(size)
				used := cpu(b)
				for b.Loop() {
					blob := create(b, s, c)
					must(b, blob.AddLinks(0, c.Links))
					for _, i := range shuffled {
						must(b, blob.Put(i, c.Piece(i)))
					}
					if sync {
						must(b, blob.Seal())
					}
					must(b, s.Remove(c.Digest))
					blob.Release()
				}
				b.ReportMetric((cpu(b)-used)/(float64(b.N)*size/1e9), "cpu-s/GB")
			})
		}
	}
}

// cpu is what the process has used, in seconds.
func cpu(b *testing.B) float64 {
	var r syscall.Rusage
	must(b, syscall.Getrusage(syscall.RUSAGE_SELF, &r))
	return float64(r.Utime.Nano()+r.Stime.Nano()) / 1e9
}

// BenchmarkGetSealed is what each request for a blob that is here costs before its
// first byte, the look at its file included.
func BenchmarkGetSealed(b *testing.B) {
	s := storetest.Open(b, store.Config{})
	c := storetest.Random(b, 1, 1<<20)
	storetest.Fill(b, s, c)
	b.ReportAllocs()
	for b.Loop() {
		held, ok := s.Get(c.Digest)
		if !ok {
			b.Fatal("not held")
		}
		held.Release()
	}
}

// BenchmarkProve is what the scrub costs, in seconds of CPU a GB.
func BenchmarkProve(b *testing.B) {
	s := storetest.Open(b, store.Config{})
	c := storetest.Random(b, 1, 64<<20)
	storetest.Fill(b, s, c)
	b.SetBytes(c.Size())
	used := cpu(b)
	for b.Loop() {
		if p, err := s.Prove(b.Context(), c.Digest); err != nil || p.Rotten > 0 {
			b.Fatal(p, err)
		}
	}
	b.ReportMetric((cpu(b)-used)/(float64(b.N)*float64(c.Size())/1e9), "cpu-s/GB")
}
