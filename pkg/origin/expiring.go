package origin

import (
	"sync"
	"time"
)

// expiring is a bounded map whose entries end. It is safe for concurrent use.
type expiring[K comparable, V any] struct {
	max int

	mu      sync.Mutex
	entries map[K]expires[V]
}

type expires[V any] struct {
	value V
	at    time.Time
}

func newExpiring[K comparable, V any](size int) *expiring[K, V] {
	return &expiring[K, V]{max: size, entries: map[K]expires[V]{}}
}

func (m *expiring[K, V]) get(k K) (V, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.entries[k]
	if !ok || !time.Now().Before(e.at) {
		var none V
		return none, false
	}
	return e.value, true
}

// put keeps v for life. When the map is full and nothing in it has ended it
// begins anew: what it holds can be had again.
func (m *expiring[K, V]) put(k K, v V, life time.Duration) {
	if life <= 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	if len(m.entries) >= m.max {
		for k, e := range m.entries {
			if !now.Before(e.at) {
				delete(m.entries, k)
			}
		}
		if len(m.entries) >= m.max {
			clear(m.entries)
		}
	}
	m.entries[k] = expires[V]{value: v, at: now.Add(life)}
}

func (m *expiring[K, V]) drop(k K) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.entries, k)
}

// dropIf drops every entry whose key is one of those that match.
func (m *expiring[K, V]) dropIf(match func(K) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for k := range m.entries {
		if match(k) {
			delete(m.entries, k)
		}
	}
}
