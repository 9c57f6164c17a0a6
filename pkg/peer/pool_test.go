package peer

import "testing"

// TestPool wants buffers of exactly the length asked for, kept for the next that fits.
func TestPool(t *testing.T) {
	p := newPool()
	for _, n := range []int{0, 1, 1023, 1024, 1025, 16384, 16393, chunkLength, chunkLength + headerLimit, 1 << 19, 1<<19 + 1} {
		for range 3 {
			b := p.Get(n)
			if len(*b) != n {
				t.Fatalf("a buffer of %d bytes, want %d", len(*b), n)
			}
			p.Put(b)
		}
	}
	p.Put(new([]byte)) // not of this pool
	foreign := make([]byte, 10, 3000)
	p.Put(&foreign)
	if b := p.Get(2500); len(*b) != 2500 || cap(*b) != 4096 {
		t.Errorf("a buffer of %d of %d bytes", len(*b), cap(*b))
	}
	if n := testing.AllocsPerRun(100, func() { p.Put(p.Get(16384)) }); n > 1 {
		t.Errorf("%v allocations to get and put a buffer", n)
	}
}
