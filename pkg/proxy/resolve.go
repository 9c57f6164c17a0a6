package proxy

import (
	"context"
	"errors"
	"net/http"
	"runtime/debug"
	"time"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
)

// errClosed: the proxy is being shut down.
var errClosed = errors.New("proxy is closed")

// tagKey is a tag as one credential sees it. Origins choose by Accept, and may by any
// header.
type tagKey struct {
	registry, repository, tag string
	who                       credential
	header                    string
}

func keyOf(q question) tagKey {
	return tagKey{q.ref.Registry, q.ref.Repository, q.ref.Reference, q.who, acceptOf(q.header)}
}

// resolved is what the origin said a tag is.
type resolved struct {
	digest blob.Digest
	info   info
	until  time.Time
}

// resolve tells which manifest a tag is without a GET: from what a GET told less than
// Config.TagTTL ago, or, where GETs are counted, by HEAD.
func (p *Proxy) resolve(ctx context.Context, t target, q question) (resolved, bool) {
	if got, ok := p.tags.get(keyOf(q)); ok && time.Now().Before(got.until) {
		return got, true
	}
	if !p.countsGets(t.registry) {
		return resolved{}, false
	}
	wait, cancel := context.WithTimeout(ctx, hintPatience)
	defer cancel()
	got, err := p.head(wait, t, q, q.header)
	if err != nil || got.status != http.StatusOK {
		return resolved{}, false
	}
	d, err := blob.ParseDigest(got.header.Get(digestHeader))
	if err != nil {
		return resolved{}, false
	}
	return resolved{digest: d, info: p.known(q.at(origin.KindManifest, d).place())}, true
}

// noteTag keeps what a GET of a tag has brought.
func (p *Proxy) noteTag(q question, d blob.Digest, i info) {
	got := resolved{digest: d, info: i, until: time.Now().Add(p.cfg.TagTTL)}
	if p.cfg.TagTTL > 0 {
		p.tags.put(keyOf(q), got, nil)
	}
	p.noteLast(q, got)
}

// noteLast keeps which manifest a tag was last, for when its registry is down.
func (p *Proxy) noteLast(q question, got resolved) {
	if p.cfg.StaleTTL > 0 {
		got.until = time.Now().Add(p.cfg.StaleTTL)
		p.last.put(keyOf(q), got, nil)
	}
}

// forgetTags drops what is believed of the tags of a repository.
func (p *Proxy) forgetTags(registry, repository string) {
	chosen := func(k tagKey) bool { return k.registry == registry && k.repository == repository }
	p.tags.drop(chosen)
	p.heads.drop(chosen)
}

// maxDetached bounds the questions that outlive who asked them. Beyond it each client's
// ends with the client.
const maxDetached = 256

// once joins callers that want the same: one runs fn, all get its result. fn
// does not end when its first caller goes, but after Config.OriginTimeout or
// when the proxy closes.
func once[T any](ctx context.Context, p *Proxy, key string, fn func(context.Context) (T, error)) (T, error) {
	var zero T
	if p.detached.Load() >= maxDetached {
		return fn(ctx)
	}
	result := p.flights.DoChan(key, func() (_ any, err error) {
		if !p.enter() {
			return zero, errClosed
		}
		defer p.leave()
		p.detached.Add(1)
		defer p.detached.Add(-1)
		defer func() {
			if v := recover(); v != nil { // singleflight would end the process
				p.log.Error("panic while asking an origin", zap.Any("panic", v), zap.ByteString("stack", debug.Stack()))
				err = errInternal()
			}
		}()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.cfg.OriginTimeout)
		defer cancel()
		defer context.AfterFunc(p.base, cancel)()
		return fn(ctx)
	})
	select {
	case r := <-result:
		if r.Err != nil {
			return zero, r.Err
		}
		return r.Val.(T), nil
	case <-ctx.Done():
		return zero, context.Cause(ctx)
	}
}
