package peer

import (
	"math/bits"
	"sync"

	"google.golang.org/grpc/mem"
)

// pool gives buffers as they were left: gRPC's own pools clear each, and whoever gets
// one here fills it. It is safe for concurrent use.
type pool struct {
	sizes [largestClass - smallestClass + 1]sync.Pool // of *[]byte, of 1<<class bytes
}

// The classes of buffers are powers of two: from a small message to a chunk with its
// header.
const (
	smallestClass = 10
	largestClass  = 19
)

// newPool returns an empty pool.
func newPool() mem.BufferPool { return new(pool) }

// Get implements mem.BufferPool.
func (p *pool) Get(length int) *[]byte {
	c := class(length)
	if c > largestClass {
		b := make([]byte, length)
		return &b
	}
	if b, ok := p.sizes[c-smallestClass].Get().(*[]byte); ok {
		*b = (*b)[:length]
		return b
	}
	b := make([]byte, length, 1<<c)
	return &b
}

// Put implements mem.BufferPool. Buffers that did not come from Get are left to the
// garbage collector.
func (p *pool) Put(b *[]byte) {
	if c := class(cap(*b)); c <= largestClass && cap(*b) == 1<<c {
		p.sizes[c-smallestClass].Put(b)
	}
}

// class is the smallest power of two, as its exponent, that holds length bytes.
func class(length int) int {
	return max(smallestClass, bits.Len(uint(max(length, 1)-1)))
}
