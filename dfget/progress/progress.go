// Package progress shows people how a download goes: bars on a terminal, a line
// every few seconds elsewhere, or nothing.
//
// Downloads report into Items, which costs them an atomic addition; drawing
// happens in Run, at its own pace. The commands of dfget call it.
package progress

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// Mode is a way to show progress.
type Mode int

// Modes.
const (
	None Mode = iota
	Plain
	Bars
)

// Config says how to draw.
type Config struct {
	Mode Mode
	// Out is drawn on. Bars need a terminal.
	Out io.Writer
	// Every is the time between two lines of Plain. Default 5 s.
	Every time.Duration
}

// Tracker holds what is under way. It is safe for concurrent use.
type Tracker struct {
	cfg   Config
	start time.Time

	mu    sync.Mutex
	items []*Item
}

// New returns a Tracker. Nothing is drawn until Run.
func New(cfg Config) *Tracker {
	if cfg.Every <= 0 {
		cfg.Every = 5 * time.Second
	}
	return &Tracker{cfg: cfg, start: time.Now()}
}

// Item is one thing under way. Its methods are safe for concurrent use.
type Item struct {
	name    string
	local   bool
	size    atomic.Int64 // below zero unknown
	done    atomic.Int64
	fetched atomic.Int64
	ended   atomic.Bool
}

// Item adds something to follow. size is below zero when unknown.
func (t *Tracker) Item(name string, size int64) *Item {
	i := &Item{name: name}
	i.size.Store(size)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.items = append(t.items, i)
	return i
}

// Local adds work on this machine alone, such as packing. It is shown but is no
// part of the totals.
func (t *Tracker) Local(name string, size int64) *Item {
	i := &Item{name: name, local: true}
	i.size.Store(size)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.items = append(t.items, i)
	return i
}

// Expect sets the size.
func (i *Item) Expect(size int64) { i.size.Store(size) }

// Kept sets what is there already.
func (i *Item) Kept(n int64) { i.done.Store(n) }

// Add says that n more bytes came.
func (i *Item) Add(n int64) {
	i.done.Add(n)
	i.fetched.Add(n)
}

// End says that the item is whole.
func (i *Item) End() { i.ended.Store(true) }

// Totals sums up all items: bytes that are here, bytes in all (below zero when
// one size is unknown), bytes fetched in this run, and how many items are whole.
func (t *Tracker) Totals() (done, size, fetched int64, ended, items int) {
	for _, i := range t.list() {
		if i.local {
			continue
		}
		done += i.done.Load()
		fetched += i.fetched.Load()
		items++
		if i.ended.Load() {
			ended++
		}
		switch s := i.size.Load(); {
		case s < 0 || size < 0:
			size = -1
		default:
			size += s
		}
	}
	return done, size, fetched, ended, items
}

func (t *Tracker) list() []*Item {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]*Item(nil), t.items...)
}

// Run draws until ctx ends, and then once more.
func (t *Tracker) Run(ctx context.Context) {
	switch t.cfg.Mode {
	case Bars:
		t.runBars(ctx)
	case Plain:
		t.runPlain(ctx)
	}
}

func (t *Tracker) runPlain(ctx context.Context) {
	tick := time.NewTicker(t.cfg.Every)
	defer tick.Stop()
	var last int64
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		done, size, fetched, ended, items := t.Totals()
		if items == 0 {
			continue
		}
		rate := float64(fetched-last) / t.cfg.Every.Seconds()
		last = fetched
		line := plainLine(done, size, rate, ended, items)
		for _, i := range t.list() {
			if i.local && !i.ended.Load() {
				line = fmt.Sprintf("%s: %s of %s", i.name, Bytes(i.done.Load()), Bytes(i.size.Load()))
			}
		}
		fmt.Fprintln(t.cfg.Out, line)
	}
}

func plainLine(done, size int64, rate float64, ended, items int) string {
	s := Bytes(done)
	if size >= 0 {
		s += " of " + Bytes(size)
		if size > 0 {
			s += fmt.Sprintf(" (%d %%)", done*100/size)
		}
	}
	if items > 1 {
		s += fmt.Sprintf(", %d of %d blobs", ended, items)
	}
	s += ", " + Bytes(int64(rate)) + "/s"
	if rate > 0 && size > done {
		s += ", " + left(float64(size-done)/rate) + " left"
	}
	return s
}

func left(seconds float64) string {
	if seconds > 99*3600 {
		return "days"
	}
	return time.Duration(seconds * float64(time.Second)).Round(time.Second).String()
}

// Bytes writes a number of bytes for people, in binary units.
func Bytes(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, u := float64(n)/1024, 0
	for f >= 1024 && u < len(units)-1 {
		f /= 1024
		u++
	}
	return fmt.Sprintf("%.1f %ciB", f, units[u])
}

// Rate writes bytes per second for people; "" when the time is too short to say.
func Rate(n int64, d time.Duration) string {
	if d < time.Millisecond {
		return ""
	}
	return Bytes(int64(float64(n)/d.Seconds())) + "/s"
}
