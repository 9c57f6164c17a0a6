package core

import "math/bits"

// queue is the receivers of a swarm that could run a lease now, those that miss
// most pieces first, and among equals the one that waits longest. A node that
// has just been served queues behind its equals.
type queue struct {
	shift      int
	buckets    [queueBuckets]bucket
	occupied   [queueBuckets / 64]uint64
	population int
}

type bucket struct{ head, tail *member }

// queueBuckets bounds how finely "misses most" is told apart.
const queueBuckets = 256

func (q *queue) init(pieces int) {
	for pieces>>q.shift >= queueBuckets {
		q.shift++
	}
}

func (q *queue) bucketOf(missing int) int { return queueBuckets - 1 - missing>>q.shift }

func (q *queue) push(m *member) {
	i := q.bucketOf(m.rx.missing)
	m.rx.bucket = i
	m.rx.queued = true
	m.rx.next, m.rx.prev = nil, q.buckets[i].tail
	if m.rx.prev == nil {
		q.buckets[i].head = m
		q.occupied[i>>6] |= 1 << (i & 63)
	} else {
		m.rx.prev.rx.next = m
	}
	q.buckets[i].tail = m
	q.population++
}

func (q *queue) remove(m *member) {
	i := m.rx.bucket
	if m.rx.prev == nil {
		q.buckets[i].head = m.rx.next
	} else {
		m.rx.prev.rx.next = m.rx.next
	}
	if m.rx.next == nil {
		q.buckets[i].tail = m.rx.prev
	} else {
		m.rx.next.rx.prev = m.rx.prev
	}
	if q.buckets[i].head == nil {
		q.occupied[i>>6] &^= 1 << (i & 63)
	}
	m.rx.next, m.rx.prev, m.rx.queued = nil, nil, false
	q.population--
}

// first is the head of the queue, nil when it is empty.
func (q *queue) first() *member { return q.from(0) }

// after is the next in the queue behind m.
func (q *queue) after(m *member) *member {
	if m.rx.next != nil {
		return m.rx.next
	}
	return q.from(m.rx.bucket + 1)
}

func (q *queue) from(i int) *member {
	for w := i >> 6; w < len(q.occupied); w++ {
		if x := q.occupied[w] & after(w, i); x != 0 {
			return q.buckets[w<<6+bits.TrailingZeros64(x)].head
		}
	}
	return nil
}
