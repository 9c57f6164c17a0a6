package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
)

// errClosed: the proxy is being shut down.
var errClosed = errors.New("proxy is closed")

// tagKey is a tag as one credential sees it. Origins choose by Accept.
type tagKey struct {
	registry, repository, tag string
	who                       credential
	accept                    string
}

// resolved is what the origin said a tag is.
type resolved struct {
	digest  blob.Digest // "" when the origin named none
	info    info
	header  http.Header // of the origin's answer
	refused *answer     // the origin does not know the tag, refuses, or has no HEAD
	until   time.Time
}

// resolve asks the origin which manifest a tag is, by HEAD: Docker Hub counts
// GETs. Equal questions of the same credential share an answer, for
// Config.TagTTL if it is a good one.
func (p *Proxy) resolve(ctx context.Context, q question) (resolved, error) {
	key := tagKey{q.ref.Registry, q.ref.Repository, q.ref.Reference, q.who, strings.Join(q.header["Accept"], ",")}
	if got, ok := p.tags.get(key); ok && time.Now().Before(got.until) {
		return got, nil
	}
	return once(ctx, p, q.flight("resolve"), func(ctx context.Context) (resolved, error) {
		resp, err := q.upstream.Head(ctx, q.ref, q.header)
		if err != nil {
			return resolved{}, fmt.Errorf("asking the origin for %s: %w", q.ref, err)
		}
		if resp.StatusCode != http.StatusOK {
			return resolved{refused: answerOf(resp)}, nil
		}
		_ = resp.Body.Close()
		got := resolved{info: infoOf(resp, origin.KindManifest), header: resp.Header, until: time.Now().Add(p.cfg.TagTTL)}
		if d, err := blob.ParseDigest(resp.Header.Get(digestHeader)); err == nil {
			got.digest = d
			p.allow(q.at(origin.KindManifest, d), got.info)
		}
		if p.cfg.TagTTL > 0 {
			p.tags.put(key, got, nil)
		}
		return got, nil
	})
}

// forgetTags drops what is believed of the tags of a repository.
func (p *Proxy) forgetTags(registry, repository string) {
	p.tags.drop(func(k tagKey) bool { return k.registry == registry && k.repository == repository })
}

// once joins callers that want the same: one runs fn, all get its result. fn
// does not end when its first caller goes, but after Config.OriginTimeout or
// when the proxy closes.
func once[T any](ctx context.Context, p *Proxy, key string, fn func(context.Context) (T, error)) (T, error) {
	var zero T
	result := p.flights.DoChan(key, func() (_ any, err error) {
		if !p.enter() {
			return zero, errClosed
		}
		defer p.leave()
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
