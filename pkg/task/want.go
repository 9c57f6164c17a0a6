package task

import (
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/control"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// want tells the scheduler what t waits for. It answers at once, unless t has leases
// already. The caller holds mu.
func (m *Manager) want(t *task) {
	t.answered = t.answered && len(t.leases) > 0
	t.asked, t.refused, t.retry = time.Now(), false, time.Time{}
	w := control.Want{Digest: t.digest, Size: t.blob.Size(), Origin: wireOrigin(t.ref, private(t.header)), Urgent: t.urgentNow()}
	if !t.all {
		w.Runs = t.wanted.Runs()
	}
	m.scheduler.Tell(w)
	t.changed()
}

// private tells whether a client's header holds more than any client's would, so
// that a seed should ask for it.
func private(h http.Header) bool {
	for name := range h {
		if origin.Decides(name) {
			return true
		}
	}
	return false
}

func wireOrigin(ref origin.Ref, private bool) *damselflyv1.Origin {
	shown := told(ref)
	o := &damselflyv1.Origin{Registry: ref.Registry, Repository: ref.Repository, Url: shown.URL, Private: private || shown != ref}
	switch ref.Kind {
	case origin.KindManifest:
		o.Kind = damselflyv1.Origin_KIND_MANIFEST
	case origin.KindURL:
		o.Kind = damselflyv1.Origin_KIND_URL
	default:
		o.Kind = damselflyv1.Origin_KIND_BLOB
	}
	return o
}

func refOf(o *damselflyv1.Origin, d blob.Digest) origin.Ref {
	ref := origin.Ref{Kind: origin.KindBlob, Registry: o.GetRegistry(), Repository: o.GetRepository(), Reference: d.String(), URL: o.GetUrl()}
	switch o.GetKind() {
	case damselflyv1.Origin_KIND_MANIFEST:
		ref.Kind = origin.KindManifest
	case damselflyv1.Origin_KIND_URL:
		ref.Kind = origin.KindURL
	}
	return ref
}

// Bounds of what is called urgent: a range reader hurries for the pieces that come
// next, not for all of a large range; and many readers together hurry for nothing.
const (
	urgentPieces = 16
	urgentRuns   = 16
)

// urgentNow is what clients of ranges wait for first: of each range, a few pieces
// from the first that is missing.
func (t *task) urgentNow() []blob.Run {
	var out []blob.Run
	for _, r := range t.urgent {
		missing := t.blob.Missing(r)
		if len(missing) == 0 || len(out) == urgentRuns {
			continue
		}
		first := missing[0].First
		out = append(out, blob.Run{First: first, Count: min(urgentPieces, r.End()-first)})
	}
	return out
}

// opened notes that a client reads run of t's blob, and tells whether that makes
// pieces urgent. The caller holds the manager's mutex.
func (t *task) opened(run blob.Run) (urgent bool) {
	if run == t.blob.Layout().All() {
		return false
	}
	t.urgent = append(t.urgent, run)
	return len(t.blob.Missing(run)) > 0
}

// closed takes opened back.
func (t *task) closed(run blob.Run) {
	if i := slices.Index(t.urgent, run); i >= 0 {
		t.urgent = slices.Delete(t.urgent, i, i+1)
	}
}

// overloadMost is how long a scheduler may say that it has too much to do before a
// task reads the origin instead.
const overloadMost = 5 * time.Second

// refuse notes that the scheduler gives t no lease: for good, or until it has less
// to do. The caller holds the manager's mutex.
func (t *task) refuse(d control.Refuse, now time.Time) {
	if t.since.IsZero() {
		t.since = now
	}
	if d.RetryAfter <= 0 || now.Add(d.RetryAfter).Sub(t.since) > overloadMost {
		t.refused, t.since = true, time.Time{}
		return
	}
	// Those who were turned away together must not come back together.
	t.retry = now.Add(d.RetryAfter*3/4 + rand.N(d.RetryAfter/2+1))
}

// wantAgain wants when the time has come, and returns when to look again. The
// caller holds mu.
func (m *Manager) wantAgain(t *task, now time.Time) time.Duration {
	if now.Before(t.retry) {
		return t.retry.Sub(now)
	}
	m.want(t)
	return m.cfg.Patience
}
