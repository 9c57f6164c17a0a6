package identity

import (
	"container/list"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	failedJoinBurst = 20
	failedJoinEvery = 3 * time.Second
	// maxAddresses bounds what the limiter remembers.
	maxAddresses = 4096
)

// failureLimiter bounds how often an address may fail. It remembers the
// maxAddresses that failed last. Safe for concurrent use.
type failureLimiter struct {
	mu sync.Mutex
	// byAddress points into order, whose front failed last.
	byAddress map[netip.Prefix]*list.Element
	order     *list.List
}

type failingAddress struct {
	prefix netip.Prefix
	bucket *rate.Limiter
}

func newFailureLimiter() *failureLimiter {
	return &failureLimiter{byAddress: make(map[netip.Prefix]*list.Element), order: list.New()}
}

// allowed says whether the address may try at the time now.
func (l *failureLimiter) allowed(address netip.Addr, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, ok := l.byAddress[prefixOf(address)]
	return !ok || e.Value.(*failingAddress).bucket.TokensAt(now) >= 1
}

// failed charges a failure to the address.
func (l *failureLimiter) failed(address netip.Addr, now time.Time) {
	prefix := prefixOf(address)
	l.mu.Lock()
	defer l.mu.Unlock()
	e, ok := l.byAddress[prefix]
	if !ok {
		if l.order.Len() >= maxAddresses {
			oldest := l.order.Back()
			l.order.Remove(oldest)
			delete(l.byAddress, oldest.Value.(*failingAddress).prefix)
		}
		bucket := rate.NewLimiter(rate.Every(failedJoinEvery), failedJoinBurst)
		e = l.order.PushFront(&failingAddress{prefix: prefix, bucket: bucket})
		l.byAddress[prefix] = e
	}
	l.order.MoveToFront(e)
	e.Value.(*failingAddress).bucket.AllowN(now, 1)
}

// prefixOf is the part of an address that one party is given: all of an IPv4
// address, 64 bits of an IPv6 one.
func prefixOf(address netip.Addr) netip.Prefix {
	address = address.Unmap().WithZone("")
	bits := address.BitLen()
	if address.Is6() {
		bits = 64
	}
	prefix, err := address.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return prefix
}
