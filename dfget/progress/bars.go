package progress

import (
	"context"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

const refresh = 150 * time.Millisecond

// runBars draws one bar an item and, once there are several, one of them all.
func (t *Tracker) runBars(ctx context.Context) {
	p := mpb.New(mpb.WithOutput(t.cfg.Out), mpb.WithAutoRefresh(), mpb.WithRefreshRate(refresh))
	b := &bars{progress: p}
	tick := time.NewTicker(refresh)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			b.update(t)
			b.finish()
			return
		case <-tick.C:
			b.update(t)
		}
	}
}

type bars struct {
	progress *mpb.Progress
	lines    []*line
	total    *line // item is nil
}

type line struct {
	item *Item
	bar  *mpb.Bar
	kept int64
}

// show draws that done bytes are here, fetched of them in this run. What an
// earlier run left has no speed.
func (l *line) show(done, fetched, size int64) {
	if kept := done - fetched; kept != l.kept {
		l.bar.SetCurrent(max(0, l.bar.Current()+kept-l.kept))
		l.kept = kept
	}
	l.bar.SetTotal(max(size, done), false)
	l.bar.EwmaSetCurrent(done, refresh)
}

func (b *bars) update(t *Tracker) {
	for _, item := range t.list()[len(b.lines):] {
		b.lines = append(b.lines, &line{item: item, bar: b.add(item.name, 0)})
	}
	if b.total == nil && len(b.lines) > 1 {
		b.total = &line{bar: b.add("total", 1)}
	}
	for _, l := range b.lines {
		fetched, done := l.item.fetched.Load(), l.item.done.Load()
		l.show(done, fetched, l.item.size.Load())
		if l.item.ended.Load() && l.bar.IsRunning() {
			l.bar.SetTotal(done, true)
		}
	}
	if b.total != nil {
		done, size, fetched, _, _ := t.Totals()
		b.total.show(done, fetched, size)
	}
}

// add makes a bar without a total: only such a bar lets it be set later, and is
// complete when we say so.
func (b *bars) add(name string, priority int) *mpb.Bar {
	return b.progress.New(0, mpb.BarStyle().Lbound("[").Filler("=").Tip(">").Padding(" ").Rbound("]"),
		mpb.BarPriority(priority*1_000_000+len(b.lines)),
		mpb.PrependDecorators(decor.Name(name, decor.WCSyncSpaceR)),
		mpb.AppendDecorators(
			decor.CountersKibiByte("% .1f / % .1f", decor.WCSyncSpace),
			decor.OnComplete(decor.EwmaSpeed(decor.SizeB1024(0), " % .1f", 30, decor.WCSyncSpace), " done"),
			decor.OnComplete(decor.EwmaETA(decor.ET_STYLE_GO, 30, decor.WCSyncSpace), ""),
		),
	)
}

// finish leaves the last state on the screen and ends the drawing.
func (b *bars) finish() {
	for _, l := range b.lines {
		l.bar.Abort(false)
	}
	if b.total != nil {
		b.total.bar.Abort(true)
	}
	b.progress.Wait()
}
