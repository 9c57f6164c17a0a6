package core

import "math/bits"

// queue is the receivers of a site that could run a lease now: the most urgent
// first, of these those that miss most pieces, and among equals the one that
// waits longest. A node that has just been served queues behind its equals.
type queue struct {
	shift  int
	count  int                 // buckets of a level
	levels [urgencies]*buckets // made when first used

	waiting bitset // the seats of all that are in it
	length  int
	pushed  uint64 // counts, so that who came first is known
}

// urgency is how soon a receiver is served: whose client reads just here, then
// by the want's priority.
type urgency uint8

const urgencies = urgency(priorities) + 1

// buckets sort receivers by what they miss.
type buckets struct {
	lists    []bucket
	occupied bitset
}

type bucket struct{ head, tail *member }

// maxBuckets bounds how finely "misses most" is told apart.
const maxBuckets = 2048

func (q *queue) init(pieces int) {
	for pieces>>q.shift >= maxBuckets {
		q.shift++
	}
	q.count = pieces>>q.shift + 1
}

func (q *queue) bucketOf(missing int) int { return q.count - 1 - missing>>q.shift }

func (q *queue) push(m *member, u urgency) {
	if q.levels[u] == nil {
		q.levels[u] = &buckets{lists: make([]bucket, q.count), occupied: newBitset(q.count)}
	}
	l, i := q.levels[u], q.bucketOf(m.rx.missing)
	m.rx.urgency, m.rx.bucket = u, i
	q.pushed++
	q.length++
	q.waiting.put(m.seat)
	m.b.seats.seats[m.seat].rank = uint64(u)<<60 | uint64(i)<<48 | q.pushed
	m.rx.queued = true
	m.rx.next, m.rx.prev = nil, l.lists[i].tail
	if m.rx.prev == nil {
		l.lists[i].head = m
		l.occupied[i>>6] |= 1 << (i & 63)
	} else {
		m.rx.prev.rx.next = m
	}
	l.lists[i].tail = m
}

func (q *queue) remove(m *member) {
	q.length--
	q.waiting.cut(m.seat)
	l, i := q.levels[m.rx.urgency], m.rx.bucket
	if m.rx.prev == nil {
		l.lists[i].head = m.rx.next
	} else {
		m.rx.prev.rx.next = m.rx.next
	}
	if m.rx.next == nil {
		l.lists[i].tail = m.rx.prev
	} else {
		m.rx.next.rx.prev = m.rx.prev
	}
	if l.lists[i].head == nil {
		l.occupied[i>>6] &^= 1 << (i & 63)
	}
	m.rx.next, m.rx.prev, m.rx.queued = nil, nil, false
}

// first is the head of the queue, nil when it is empty.
func (q *queue) first() *member { return q.from(0, 0) }

// after is the next in the queue behind m.
func (q *queue) after(m *member) *member {
	if m.rx.next != nil {
		return m.rx.next
	}
	return q.from(m.rx.urgency, m.rx.bucket+1)
}

func (q *queue) from(u urgency, i int) *member {
	for ; u < urgencies; u, i = u+1, 0 {
		l := q.levels[u]
		if l == nil {
			continue
		}
		for w := i >> 6; w < len(l.occupied); w++ {
			if x := l.occupied[w] & after(w, i); x != 0 {
				return l.lists[w<<6+bits.TrailingZeros64(x)].head
			}
		}
	}
	return nil
}
