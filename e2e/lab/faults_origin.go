package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/damselfly-p2p/damselfly/e2e/origin"
)

// originFaults are those of the registry.
func originFaults() []scenario {
	return []scenario{
		{name: "origin-429", what: "the origin answers reads of blobs with 429 and Retry-After for 5 s, from the first on", run: tooMany(isBlob)},
		{name: "origin-429-all", what: "the origin answers everything so", run: tooMany(nil)},
		{name: "origin-500", what: "the origin answers the first three reads of each layer with 500", run: serverErrors},
		{name: "origin-slow", what: "the origin sends at a quarter of the rate", prepare: slowOrigin, run: narrow},
		{name: "origin-short", what: "the origin breaks off the first read of each layer half way, and the second soon after", run: brokenOff},
		{name: "origin-wrong", what: "the origin changes a bit in the midst of each layer the first time", run: wrongOrigin},
		{name: "origin-norange", what: "the origin ignores ranges, and breaks off half way", run: noRange},
		{name: "origin-expired", what: "the origin sends clients to URLs that are good for a second, and breaks off half way", run: expired},
	}
}

// asked counts what reaches a fault, with its time.
type asked struct {
	mu    sync.Mutex
	times []time.Time
}

// add counts one and returns when the first was.
func (a *asked) add() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.times = append(a.times, time.Now())
	return a.times[0]
}

// between is how many came from one time after the first on, and before another.
func (a *asked) between(from, to time.Duration) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := 0
	for _, t := range a.times {
		if since := t.Sub(a.times[0]); since >= from && since < to {
			n++
		}
	}
	return n
}

func isBlob(r *http.Request) bool { return strings.Contains(r.URL.Path, "/blobs/") }

// tooMany refuses what matches, all for nil, and tells what that came to: how many
// requests were refused, how many came as soon as they were not, and how much longer
// than the pause everybody waited.
func tooMany(match func(*http.Request) bool) func(context.Context, *world) error {
	return func(ctx context.Context, w *world) error {
		const lasts = 5 * time.Second
		var all asked
		remove := w.origin.Inject(origin.Rule{Match: match, Fault: func(rw http.ResponseWriter, r *http.Request, next http.Handler) {
			left := lasts - time.Since(all.add())
			if left <= 0 {
				next.ServeHTTP(rw, r)
				return
			}
			seconds := int((left + time.Second - 1) / time.Second)
			origin.Status(http.StatusTooManyRequests, "Retry-After", strconv.Itoa(seconds))(rw, r, next)
		}})
		defer remove()
		w.flash(ctx, w.cluster.Nodes)
		refused := w.origin.Counts().Status[http.StatusTooManyRequests]
		w.must(refused > 0, "nothing was refused")
		w.figure("refused_requests", float64(refused))
		w.figure("requests_after_pause", float64(all.between(lasts, lasts+3*time.Second)))
		w.figure("seconds_beyond_pause", (w.slowest()-lasts).Seconds()-1.15*w.bound().Seconds())
		return ctx.Err()
	}
}

// eachLayer makes faults one after another happen to reads of each layer. The returned
// function tells how many did not happen.
func (w *world) eachLayer(faults ...origin.Fault) (unused func() int) {
	var done asked
	all := 0
	for _, l := range w.images[0].Native.Layers {
		for _, f := range faults {
			all++
			w.origin.Inject(origin.Rule{Match: origin.Blob(l.Digest), Times: 1, Fault: func(rw http.ResponseWriter, r *http.Request, next http.Handler) {
				done.add()
				f(rw, r, next)
			}})
		}
	}
	return func() int { return all - done.between(0, time.Hour) }
}

func serverErrors(ctx context.Context, w *world) error {
	fault := origin.Status(http.StatusInternalServerError)
	unused := w.eachLayer(fault, fault, fault)
	w.flash(ctx, w.cluster.Nodes)
	w.must(unused() == 0, "%d errors were not asked for", unused())
	return ctx.Err()
}

func slowOrigin(o *options) { o.originRate = o.rate / 4 }

// narrow has the origin's link narrow: the bound knows it.
func narrow(ctx context.Context, w *world) error {
	w.flash(ctx, w.cluster.Nodes)
	w.must(w.slowest() > w.bound()*9/10, "the slowest node took %v, which no slow origin allows", w.slowest())
	return ctx.Err()
}

func brokenOff(ctx context.Context, w *world) error {
	half := w.layers[0] / 2
	unused := w.eachLayer(origin.Cut(half), origin.Cut(half/2))
	w.flash(ctx, w.cluster.Nodes)
	w.must(unused() == 0, "%d reads were not broken off", unused())
	return ctx.Err()
}

// wrongOrigin has pulls that fail: the wrong bit is seen at the end of the layer, when
// clients have what came before. None may end well with it, and a second attempt must.
func wrongOrigin(ctx context.Context, w *world) error {
	unused := w.eachLayer(origin.Flip(w.layers[0] / 2))
	w.flash(ctx, w.cluster.Nodes)
	w.must(unused() == 0, "%d layers were sent right", unused())
	for _, p := range w.begun() {
		w.must(p.wrongBlobs == 0, "%s ended a layer well with wrong bytes", p.node)
	}
	cut := w.forget(func(p *pull) bool { return p.err != nil })
	w.figure("cut_off", float64(cut))
	w.note("%d pulls were cut off, rightly, and are not counted; the times are of those after them", cut)
	w.flash(ctx, w.cluster.Nodes)
	return ctx.Err()
}

func noRange(ctx context.Context, w *world) error {
	cut := w.eachLayer(origin.Cut(w.layers[0] / 2))
	w.origin.Inject(origin.Rule{Fault: origin.IgnoreRange})
	w.flash(ctx, w.cluster.Nodes)
	w.must(cut() == 0, "%d layers were not broken off", cut())
	return ctx.Err()
}

// bucket is the address of the server that expired redirects to.
func (w *world) bucket() string { return net.JoinHostPort(w.originPort.Addr().String(), "5001") }

// expired stands between the registry and its readers as a bucket does. A URL is asked
// about when a read begins, not while it goes on.
func expired(ctx context.Context, w *world) error {
	const good = time.Second
	layer := w.images[0].Native.Layers[0]
	authorization, err := w.origin.Authorization(origin.Reader, w.images[0].repository)
	if err != nil {
		return err
	}
	signed := func(r *http.Request) (int64, bool) {
		n, err := strconv.ParseInt(r.URL.Query().Get("expires"), 10, 64)
		return n, err == nil
	}
	w.origin.Inject(origin.Rule{Times: 1, Fault: origin.Cut(w.layers[0] / 2), Match: func(r *http.Request) bool {
		_, ok := signed(r)
		return ok && origin.Blob(layer.Digest)(r)
	}})
	w.origin.Inject(origin.Rule{
		Match: func(r *http.Request) bool {
			_, ok := signed(r)
			return !ok && origin.Blob(layer.Digest)(r)
		},
		Fault: func(rw http.ResponseWriter, r *http.Request, _ http.Handler) {
			to := url.URL{Scheme: "https", Host: w.bucket(), Path: r.URL.Path}
			to.RawQuery = fmt.Sprintf("expires=%d", time.Now().Add(good).UnixMilli())
			http.Redirect(rw, r, to.String(), http.StatusTemporaryRedirect)
		},
	})
	var late, reads asked
	handler := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if until, ok := signed(r); !ok || time.Now().UnixMilli() > until {
			late.add()
			http.Error(rw, "Request has expired", http.StatusForbidden)
			return
		}
		reads.add()
		r.Header.Set("Authorization", authorization) // the registry behind does not know such URLs
		w.origin.ServeHTTP(rw, r)
	})
	bucket, err := w.origin.Beside(handler, origin.Wire{Listen: func() (net.Listener, error) {
		return w.originPort.Listen(ctx, "tcp", w.bucket())
	}})
	if err != nil {
		return err
	}
	defer bucket.Close()
	w.flash(ctx, w.cluster.Nodes)
	w.figure("expired_requests", float64(late.between(0, time.Hour)))
	w.must(reads.between(good, time.Hour) > 0, "no read began after the first URL had expired")
	return ctx.Err()
}
