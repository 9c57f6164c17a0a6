package proxy

import (
	"container/list"
	"sync"
)

// lru is a map that holds at most a number of entries and drops the least
// recently used one for a new one. It is safe for concurrent use.
type lru[K comparable, V any] struct {
	most int

	mu      sync.Mutex
	entries map[K]*list.Element
	order   list.List // most recently used first; values are *lruEntry[K, V]
}

type lruEntry[K comparable, V any] struct {
	key   K
	value V
}

func newLRU[K comparable, V any](most int) *lru[K, V] {
	return &lru[K, V]{most: most, entries: map[K]*list.Element{}}
}

// get returns the entry's value and marks it as used.
func (c *lru[K, V]) get(k K) (V, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[k]
	if !ok {
		var zero V
		return zero, false
	}
	c.order.MoveToFront(e)
	return e.Value.(*lruEntry[K, V]).value, true
}

// put sets the entry's value. If merge is given and the entry exists, merge
// decides from the old and the new value.
func (c *lru[K, V]) put(k K, v V, merge func(old, next V) V) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.entries[k]; ok {
		entry := e.Value.(*lruEntry[K, V])
		if merge != nil {
			v = merge(entry.value, v)
		}
		entry.value = v
		c.order.MoveToFront(e)
		return
	}
	c.entries[k] = c.order.PushFront(&lruEntry[K, V]{key: k, value: v})
	if c.order.Len() > c.most {
		last := c.order.Back()
		c.order.Remove(last)
		delete(c.entries, last.Value.(*lruEntry[K, V]).key)
	}
}

// drop removes every entry whose key is chosen.
func (c *lru[K, V]) drop(chosen func(K) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, e := range c.entries {
		if chosen(k) {
			c.order.Remove(e)
			delete(c.entries, k)
		}
	}
}

// remove removes an entry, if it is there.
func (c *lru[K, V]) remove(k K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.entries[k]; ok {
		c.order.Remove(e)
		delete(c.entries, k)
	}
}
