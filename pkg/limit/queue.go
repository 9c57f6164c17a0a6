package limit

import (
	"context"
	"slices"
)

// Class is who waits for bytes. A lower number goes first. The numbers are those of
// scheduler.proto, Want.Priority.
type Class uint8

// The classes. What is above Background counts as Background.
const (
	Client     Class = iota // a client waits
	Preheat                 // wanted before anybody asks
	Background              // repairs, and what clients may come back for
	classes
)

type classKey struct{}

// With returns a context for work on behalf of class c: what is read with it waits as
// c, here and on the nodes that are asked.
func With(ctx context.Context, c Class) context.Context {
	if c == ClassOf(ctx) {
		return ctx
	}
	return context.WithValue(ctx, classKey{}, c)
}

// ClassOf is the class that work with ctx is for: Client where nothing was said.
func ClassOf(ctx context.Context) Class {
	c, _ := ctx.Value(classKey{}).(Class)
	return c
}

func (q *queue) add(name string, w *waiter) {
	i := q.find(name)
	if i < 0 {
		i = len(q.parties)
		q.parties = append(q.parties, &party{name: name})
	}
	q.parties[i].waiters = append(q.parties[i].waiters, w)
}

func (q *queue) find(name string) int {
	return slices.IndexFunc(q.parties, func(p *party) bool { return p.name == name })
}

// first is the waiter that is to be served. There is one.
func (q *queue) first() *waiter { return q.parties[0].waiters[0] }

// served ends the turn of the first party, whose first waiter w was given something.
func (q *queue) served(w *waiter) {
	q.passed = 0
	p := q.parties[0]
	copy(q.parties, q.parties[1:])
	q.parties[len(q.parties)-1] = p
	if w.left == 0 {
		q.remove(p.name, w)
	}
}

// pass notes that a higher class was given n bytes.
func (q *queue) pass(n int) {
	if len(q.parties) > 0 {
		q.passed += n
	}
}

// remove takes a waiter out, and tells whether it was there.
func (q *queue) remove(name string, w *waiter) bool {
	i := q.find(name)
	if i < 0 {
		return false
	}
	p := q.parties[i]
	at := slices.Index(p.waiters, w)
	if at < 0 {
		return false
	}
	p.waiters = slices.Delete(p.waiters, at, at+1)
	if len(p.waiters) == 0 {
		q.parties = slices.Delete(q.parties, i, i+1)
	}
	if len(q.parties) == 0 {
		q.passed = 0
	}
	return true
}
