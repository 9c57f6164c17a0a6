package proxy

import (
	"context"
	"time"
)

// grant is until when a credential may read content at a place.
type grant struct {
	told  time.Time // by the origin's own word about the content
	named time.Time // by the word of a manifest that it may read, if the origin keeps the content there
}

// ends is when nothing of the grant holds any more.
func (g grant) ends() time.Time { return later(g.told, g.named) }

// merge is what both grants give.
func (g grant) merge(next grant) grant {
	return grant{later(g.told, next.told), later(g.named, next.named)}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// granted looks for a permission by the origin's own word that still holds.
func (p *Proxy) granted(q question) (result string, ok bool) {
	now, at := time.Now(), q.place()
	if g, ok := p.grants.get(grantKey{place: at}); ok && now.Before(g.told) {
		return authzPublic, true
	}
	g, ok := p.grants.get(grantKey{at, q.who})
	return authzGranted, ok && now.Before(g.told)
}

// named reports whether a manifest that the client may read still gives it what q names.
func (p *Proxy) named(q question) bool {
	now, at := time.Now(), q.place()
	if g, ok := p.grants.get(grantKey{place: at}); ok && now.Before(g.named) {
		return true
	}
	g, ok := p.grants.get(grantKey{at, q.who})
	return ok && now.Before(g.named)
}

// confirm returns nil when the registry is known to keep what q names in q's repository, by
// the bytes that are here or because it says so now. It is for content that a manifest
// names, and must be called once some of its bytes are here: where they have been served
// comes with them.
//
// A manifest's word is that of whoever pushed it. Registries are to check it, and some do
// not: they read JSON otherwise than this node, take indexes whose manifests are absent, or
// look at nothing.
func (p *Proxy) confirm(ctx context.Context, q question) error {
	if p.tasks.Served(q.ref, q.digest) {
		return nil
	}
	if why := p.asked(ctx, q); why != "" {
		return &unconfirmed{why}
	}
	return nil
}

// unconfirmed: a manifest names content of which the registry does not say that it keeps it.
type unconfirmed struct{ why reason }

func (e *unconfirmed) Error() string {
	return "the registry does not say that it keeps in this repository what a manifest of it names"
}

// allow remembers that the client may read the digest, and what is known of it.
func (p *Proxy) allow(q question, i info) {
	p.learn(q.place(), i)
	p.tasks.Serves(q.ref, q.digest)
	until := time.Now().Add(p.cfg.GrantTTL)
	if exp, ok := expiry(q.header.Get("Authorization")); ok && exp.Before(until) {
		until = exp
	}
	p.grants.put(grantKey{q.place(), q.who}, grant{told: until}, func(old, next grant) grant {
		return grant{next.told, old.named}
	})
	if q.who == (credential{}) && p.cfg.StaleTTL > 0 {
		p.public.put(q.place(), grant{told: time.Now().Add(p.cfg.StaleTTL)}, grant.merge)
	}
}

// inherit gives a child of the manifest q what the client has of that, for no longer.
func (p *Proxy) inherit(q, kid question) {
	if g, ok := p.grants.get(grantKey{q.place(), q.who}); ok {
		p.grants.put(grantKey{kid.place(), q.who}, grant{named: g.ends()}, grant.merge)
	}
	if g, ok := p.grants.get(grantKey{place: q.place()}); ok {
		p.grants.put(grantKey{place: kid.place()}, grant{named: g.ends()}, grant.merge)
	}
	if g, ok := p.public.get(q.place()); ok {
		p.public.put(kid.place(), grant{named: g.ends()}, grant.merge)
	}
}

// disallow forgets a permission that the origin has taken back.
func (p *Proxy) disallow(q question) {
	p.grants.remove(grantKey{q.place(), q.who})
	if q.who == (credential{}) {
		p.public.remove(q.place())
	}
}
